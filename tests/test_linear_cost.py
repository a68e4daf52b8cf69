"""The work of an analysis, counted: it grows with the layers and with the tokens, and with nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode

from luq_gguf import activations, entropy
from luq_gguf.calibration import load_calibration
from luq_gguf.checkpoint import Checkpoint
from luq_gguf.families import find_family
from luq_gguf.prompts import tokenize_calibration
from luq_gguf.samples import CalibrationSet
from luq_gguf.workload import load_of
from tests.pico import build_pico

WORDS = ("a", "red", "circle", "and", "two", "blue", "squares", "left", "of", "it")
QUESTIONS = 8


@dataclass
class Work:
    """Tokens with padding, operations of matrix products, elements read, token vectors that went through K-means."""

    tokens: int = 0
    products: int = 0
    read: int = 0
    clustered: int = 0


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    """Counts what is read and clustered from here on."""
    work = Work()
    chunks, cluster = Checkpoint.chunks, entropy._cluster_all

    def counted_chunks(checkpoint, name: str, start: int, stop: int, *size: int):
        for part in chunks(checkpoint, name, start, stop, *size):
            work.read += len(part)
            yield part

    def counted_cluster(points: np.ndarray, *others):
        work.clustered += len(points)
        return cluster(points, *others)

    monkeypatch.setattr(Checkpoint, "chunks", counted_chunks)
    monkeypatch.setattr(entropy, "_cluster_all", counted_cluster)
    return work


def texts_of(folder: Path, count: int) -> CalibrationSet:
    """So many texts with the same words, and always the same questions."""
    random = np.random.default_rng(0)
    rows = [{"text": " ".join(random.permutation(WORDS))} for _ in range(count)]
    rows += [{"question": f"What is {number}?", "answer": "a red circle"} for number in range(QUESTIONS)]
    folder.mkdir(exist_ok=True)
    path = folder / f"{count}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_calibration(path)


def work_of(model: Path, samples: CalibrationSet, counting: Work) -> Work:
    checkpoint = Checkpoint.open(model)
    family = find_family(checkpoint.config, checkpoint)
    prompts = tokenize_calibration(checkpoint, family, samples, None)
    counting.read = counting.clustered = 0
    with FlopCounterMode(display=False) as counter:
        activations.analyze(checkpoint, family, samples, compute_type="f32", prompts=prompts)
    return Work(load_of(prompts).tokens, counter.get_total_flops(), counting.read, counting.clustered)


def test_work_grows_with_the_layers(tmp_path: Path, counting: Work) -> None:
    samples = texts_of(tmp_path / "texts", 40)
    two, four, eight = (
        work_of(build_pico(tmp_path / str(layers), layers=layers), samples, counting) for layers in (2, 4, 8)
    )
    for name in ("products", "read", "clustered"):
        first, second = (getattr(more, name) - getattr(less, name) for less, more in ((two, four), (four, eight)))
        assert second == 2 * first > 0, name
    assert two.clustered * 4 == eight.clustered


def test_work_grows_with_the_tokens(tmp_path: Path, counting: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products with every token; weights are read as often for many; K-means stops at its most vectors."""
    monkeypatch.setattr(entropy, "MAX_VECTORS", 1600)
    monkeypatch.setattr(entropy.choose_tokens, "__defaults__", (1600,))
    model = build_pico(tmp_path / "model")
    few, more, many = (work_of(model, texts_of(tmp_path / "texts", count), counting) for count in (50, 100, 200))
    steps = [(one.products - few.products, one.tokens - few.tokens) for one in (more, many)]
    assert steps[1][0] * steps[0][1] == steps[0][0] * steps[1][1] > 0
    assert many.tokens > 2 * few.tokens
    assert few.read == more.read == many.read
    assert few.clustered < more.clustered == many.clustered
