"""Measures in about two seconds how fast this machine multiplies, quantizes and writes, for estimates of times.

Takes the sizes that a model will be computed in. Other programs that run meanwhile make the rates, and what is
estimated from them, slower.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from luq_gguf.artifacts import existing_folder
from luq_gguf.cost_factors import TABLE_TYPES
from luq_gguf.costs import Shape
from luq_gguf.durations import Rates
from luq_gguf.processors import default_threads, torch_threads
from luq_gguf.quantizer import Quantizer
from luq_gguf.type_names import UNQUANTIZED

ROWS = 2048
"""Token vectors in the products that are timed, about a batch of the analysis."""
MOST_PRODUCTS = 4 << 30
"""Multiply-adds of a timed product at most: some tenths of a second on a slow machine."""
SINGLE_SHARE = 4
"""The product on one thread is so much smaller."""
QUANTIZE_SECONDS = 0.12
"""For each type."""
WRITE_BYTES = 32 << 20
PLAIN = "Q4_K"
"""What types whose tables take seconds are held against."""
BLOCK = 256
"""Rows of so many numbers, or multiples, fill the blocks of every type."""


def measure_rates(
    shape: Shape, compute_type: str, types: Iterable[str], folder: Path, threads: int, quantizer: Quantizer
) -> Rates:
    """The rates of this machine; `threads` 0 takes one for each core, `folder` need not be there.

    A file in the folder, or in the first one above that is there, is gone afterwards.
    """
    used, kinds = threads or default_threads(), set(types)
    single = _quantize_rates(shape, kinds, quantizer)
    return Rates(
        products=_product_rate(shape, compute_type, threads),
        single=_product_rate(shape, "f32", 1),
        disk=_disk_rate(existing_folder(folder)),
        quantized={kind: used * single[kind] for kind in kinds & single.keys()},
        threads=used,
        tables={kind: numbers / single[PLAIN] for kind, (_, numbers) in TABLE_TYPES.items() if kind in kinds},
    )


def _product_rate(shape: Shape, compute_type: str, threads: int) -> float:
    """Multiply-adds a second of token vectors with a slice of an FFN matrix, on so many threads."""
    import torch

    with torch_threads(threads) as used:
        limit = MOST_PRODUCTS if used > 1 else MOST_PRODUCTS // SINGLE_SHARE
        columns = max(16, min(shape.ffn, limit // (ROWS * shape.hidden)))
        kind = torch.bfloat16 if compute_type == "bf16" else torch.float32
        vectors, weights = torch.randn(ROWS, shape.hidden, dtype=kind), torch.randn(columns, shape.hidden, dtype=kind)
        seconds = _best_of(lambda: vectors @ weights.T)
    return ROWS * shape.hidden * columns / seconds


def _best_of(work: Callable[[], object], times: int = 3) -> float:
    """Seconds of the fastest of some runs: others were held up."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return max(min(taken), 1e-9)


def _quantize_rates(shape: Shape, types: Iterable[str], quantizer: Quantizer) -> dict[str, float]:
    """Numbers a second and thread, by type; those with tables by their usual share of what others are made.

    Types that llama.cpp only copies are left out.
    """
    kinds = sorted({PLAIN, *types} - UNQUANTIZED - TABLE_TYPES.keys())
    columns = max(BLOCK, shape.hidden // BLOCK * BLOCK)
    job = {"source": "random numbers", "kinds": kinds, "columns": columns, "seconds": QUANTIZE_SECONDS}
    rates: dict[str, float] = quantizer.run(job, lambda line: None)["rates"]
    return rates | {kind: share * rates[PLAIN] for kind, (share, _) in TABLE_TYPES.items()}


def _disk_rate(folder: Path) -> float:
    """Bytes a second that are written and flushed."""
    block = os.urandom(1 << 20)
    with tempfile.TemporaryFile(dir=folder) as handle:
        started = time.perf_counter()
        for _ in range(WRITE_BYTES // len(block)):
            handle.write(block)
        handle.flush()
        os.fsync(handle.fileno())
        return WRITE_BYTES / (time.perf_counter() - started)
