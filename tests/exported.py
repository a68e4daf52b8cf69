"""The files that a checkpoint is exported to, for tests that start from them."""

from __future__ import annotations

from pathlib import Path

from luq_gguf.checkpoint import Checkpoint
from luq_gguf.export import export_text, export_vision
from luq_gguf.families import find_family


def export_both(source: Path, folder: Path, dtype: str = "f16") -> tuple[Path, Path]:
    """Text model and mmproj, written into `folder`."""
    checkpoint = Checkpoint.open(source)
    family = find_family(checkpoint.config, checkpoint)
    text, vision = folder / f"text-{dtype}.gguf", folder / f"mmproj-{dtype}.gguf"
    export_text(checkpoint, family, text, dtype=dtype)
    export_vision(checkpoint, family, vision, dtype=dtype)
    return text, vision


def export_speed_files(source: Path, folder: Path) -> dict[str, Path]:
    """Text models "f16" and "f32", which differ in speed, and their "mmproj", by name."""
    checkpoint = Checkpoint.open(source)
    family = find_family(checkpoint.config, checkpoint)
    paths = {name: folder / f"{name}.gguf" for name in ("f16", "f32", "mmproj")}
    for dtype in ("f16", "f32"):
        export_text(checkpoint, family, paths[dtype], dtype=dtype)
    export_vision(checkpoint, family, paths["mmproj"])
    return paths
