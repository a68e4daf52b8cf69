"""An analysis in bounded memory: a layer, a few samples, and what the libraries take."""

from __future__ import annotations

import ctypes
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.make_checkpoint import hub_shapes, make_checkpoint
from luq_gguf.input_sums import BLOCK, InputSums
from tests.program import command
from tests.published import QWEN25_VL_7B, merged

LARGE = merged(
    QWEN25_VL_7B, hidden_size=1024, intermediate_size=4096, num_hidden_layers=22, max_window_layers=22,
    num_attention_heads=8, num_key_value_heads=2, tie_word_embeddings=True, vocab_size=151936,
    rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]},
    vision_config={"depth": 16, "out_hidden_size": 1024, "fullatt_block_indexes": [7, 15]},
)  # fmt: skip
LIBRARIES = 1000 << 20
"""What torch, transformers and scikit-learn take, with their threads and a batch."""


@pytest.mark.slow
def test_an_analysis_fits_where_neither_the_decoder_nor_the_tower_does(tmp_path: Path) -> None:
    """Under a hard limit on memory of its own, in float32; mapped files are not counted, as the page cache is not."""
    model = tmp_path / "model"
    make_checkpoint(LARGE, model)
    sizes = {name: 4 * shape.numel() for name, shape in hub_shapes(LARGE).items()}
    layer = sum(size for name, size in sizes.items() if name.startswith("model.layers.0."))
    tower = sum(size for name, size in sizes.items() if name.startswith("visual."))
    limit = layer + LIBRARIES
    assert min(tower, LARGE["num_hidden_layers"] * layer) > limit
    options = ("--calib", "shapes", "--samples", 12, "--compute-type", "f32")
    done = subprocess.run(
        command("analyze", model, "--out", tmp_path / "out", *options), capture_output=True, text=True, check=False,
        timeout=900, env={"OMP_NUM_THREADS": "2", "PATH": "/usr/bin:/bin"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["layers"] == LARGE["num_hidden_layers"]


def test_sums_widen_a_block_at_a_time() -> None:
    """In blocks of any height, also where a row is longer than one: against float64."""
    import torch

    for channels in (8, 1000, BLOCK + 3):
        rows = torch.randn(2, 37, channels, generator=torch.Generator().manual_seed(channels)).bfloat16()
        modality = torch.zeros(3, 74)
        modality[0, :30] = modality[2, 40:73] = 1
        sums = InputSums()
        sums.add("x", rows, modality)
        sums.add("x", rows, modality)
        wide = rows.reshape(74, channels).double().square()
        assert sums.counts["x"] == {"image": 60, "multimodal_text": 0, "text": 66}
        for key, chosen in (("image", wide[:30]), ("multimodal_text", wide[:0]), ("text", wide[40:73])):
            found = torch.from_numpy(sums.squares["x"][key])
            torch.testing.assert_close(found, 2 * chosen.sum(dim=0), rtol=1e-5, atol=1e-30)


HEAP = """
import resource
import numpy as np
from luq_gguf.heap import reused_heap

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

before = resident()
with reused_heap():
    for _ in range(4):
        np.full(1 << 23, 1.0)
    kept = resident()
    for _ in range(4):
        np.full(1 << 23, 1.0)
    again = resident()
print(kept - before, again - kept, resident() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_freed_blocks_stay_and_go_back_at_the_end() -> None:
    """A block of 64 MB is used again while the heap is, and its memory is free afterwards."""
    done = subprocess.run([sys.executable, "-c", HEAP], capture_output=True, text=True, check=True, timeout=300)
    kept, grown, left = map(int, done.stdout.split())
    assert kept > 48
    assert grown < 8
    assert left < 16
