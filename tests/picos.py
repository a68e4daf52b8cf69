"""Pico checkpoints of every family, by name."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.pico import build_pico
from tests.pico_gemma3 import build_gemma3
from tests.pico_llava import build_llava
from tests.pico_qwen2_vl import build_qwen2_vl
from tests.pico_qwen3_vl import build_qwen3_vl
from tests.pico_text import build_llama, build_qwen3, build_qwen25

FAMILIES: dict[str, Callable[..., Path]] = {
    "qwen2.5-vl": build_pico,
    "qwen2-vl": build_qwen2_vl,
    "qwen3-vl": build_qwen3_vl,
    "llava-1.5": build_llava,
    "gemma-3": build_gemma3,
    "qwen2.5": build_qwen25,
    "qwen3": build_qwen3,
    "llama": build_llama,
}
TEXT_ONLY = ("qwen2.5", "qwen3", "llama")

FAMILY_GOLDEN_CASES: dict[str, dict[str, Any]] = {
    "qwen2-vl": {"family": "qwen2-vl", "folder": "Pico2-VL-2M-Instruct"},
    "qwen3-vl": {"family": "qwen3-vl", "folder": "Pico3-VL-3M-Instruct"},
    "qwen3-vl-tied-f16": {"family": "qwen3-vl", "folder": "Pico3-VL", "dtype": "f16", "tied": True, "seed": 1},
    "llava-1.5": {"family": "llava-1.5", "folder": "pico-llava-1.5-2m-hf"},
    "gemma-3": {"family": "gemma-3", "folder": "pico-3-4m-it"},
    "qwen2.5": {"family": "qwen2.5", "folder": "Pico2.5-2M-Instruct"},
    "qwen3": {"family": "qwen3", "folder": "Pico3-2M"},
    "llama": {"family": "llama", "folder": "Pico-3.2-2M-Instruct"},
}
"""Checkpoints for which tests/golden holds what llama.cpp's own converter made of them."""


def build_family(folder: Path, family: str, *, form: str = "hub", **options: Any) -> Path:
    """Write a pico checkpoint of a family into `folder` and return it.

    `form` is "hub", or "transformers5": what transformers makes of the hub's form when it saves it. `options` are
    those of the family's builder: dtype, shards, seed, layers, and tied where a family has both.
    """
    if form == "hub":
        return FAMILIES[family](folder, **options)
    with tempfile.TemporaryDirectory() as work:
        return resave(FAMILIES[family](Path(work), **options), folder)


def resave(checkpoint: Path, folder: Path) -> Path:
    """Load a checkpoint by transformers and save model, tokenizer and processor again."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    vision = (checkpoint / "preprocessor_config.json").exists()
    model = AutoModelForImageTextToText if vision else AutoModelForCausalLM
    model.from_pretrained(checkpoint, dtype="auto").save_pretrained(folder, max_shard_size="1MB")
    if (checkpoint / "processor_config.json").exists():
        AutoProcessor.from_pretrained(checkpoint).save_pretrained(folder)
        return folder
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)
    if vision:
        # Qwen's processors need torchvision for videos; their image processor does not.
        Qwen2VLImageProcessorPil.from_pretrained(checkpoint).save_pretrained(folder)
    return folder


def build_family_golden_case(parent: Path, case: str) -> Path:
    """Write one of FAMILY_GOLDEN_CASES into `parent`, under the folder name that its golden file was made with."""
    options = {"shards": 3} | FAMILY_GOLDEN_CASES[case]
    return build_family(parent / options.pop("folder"), options.pop("family"), **options)
