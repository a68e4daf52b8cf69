"""How fast ggml quantizes to some types on one thread; runs in `quantize_worker`, where llama.cpp is loaded."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType

from luq_gguf.row_errors import quantize_rows

WARM_COLUMNS = 256
"""The first rows of a type make its tables."""
MOST_ROWS = 256


def measure_rates(types: Sequence[GGMLQuantizationType], columns: int, seconds: float) -> dict[str, float]:
    """By type: numbers a second, from rows of so many random numbers with importance, quantized for some seconds."""
    random = np.random.default_rng(0)
    values = random.standard_normal((1, columns), dtype=np.float32)
    importance = random.random(columns, dtype=np.float32) + np.float32(0.5)
    found = {}
    for kind in types:
        quantize_rows(values[:, :WARM_COLUMNS], importance[:WARM_COLUMNS], kind)
        started, rows, taken = time.perf_counter(), 0, 0.0
        while rows < MOST_ROWS and taken < seconds:
            quantize_rows(values, importance, kind)
            rows += 1
            taken = time.perf_counter() - started
        found[kind.name] = rows * columns / max(taken, 1e-9)
    return found


def answer_of(job: Mapping[str, Any]) -> dict[str, float]:
    """The rates that a job of the child asks for."""
    types = [GGMLQuantizationType[name] for name in job["kinds"]]
    return measure_rates(types, job["columns"], job["seconds"])
