"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pico import build_pico


@pytest.fixture(scope="session")
def pico_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pico Qwen2.5-VL in the hub's form: bf16, one file, 3 layers."""
    return build_pico(tmp_path_factory.mktemp("checkpoints") / "Pico-VL-Instruct")
