"""preprocessor_config.json of a checkpoint: how its images are made, held against the vision tower's config."""

from __future__ import annotations

from typing import Any

from luq_gguf.checkpoint import Checkpoint
from luq_gguf.errors import CheckpointError
from luq_gguf.families.base import ConfigReader

FILES = ("preprocessor_config.json", "processor_config.json")


def read_processor(checkpoint: Checkpoint) -> ConfigReader:
    """What the processor's files say, the second over the first; raises CheckpointError where neither does."""
    content: dict[str, Any] = {}
    for file in FILES:
        found = checkpoint.side_json(file)
        nested = found.get("image_processor")
        content |= found | (nested if isinstance(nested, dict) else {})
    if not content:
        raise CheckpointError(
            f"{checkpoint.folder} has no {FILES[0]}", hint="it says how images are made: download it with the model"
        )
    return ConfigReader(content, f"{FILES[0]} of {checkpoint.folder}")


def require_fit(reader: ConfigReader, key: str, wanted: int) -> None:
    """Raise CheckpointError where the processor states another number than the vision tower's config."""
    if reader.content.get(key) not in (None, wanted):
        raise reader.wrong(key, reader.content[key], f"{wanted}, as config.json has it: it belongs to another model")


def square_side(reader: ConfigReader, key: str, wanted: int) -> None:
    """Raise CheckpointError unless images become squares of the side that the vision tower takes."""
    stated = reader.content.get(key)
    sides = set(stated.values()) if isinstance(stated, dict) else {stated}
    if sides - {None} and not sides <= {wanted, None}:
        raise reader.wrong(
            key, stated, f"{wanted} x {wanted} pixels, as config.json has it: it belongs to another model"
        )
