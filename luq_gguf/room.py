"""The room on the disk that a conversion needs: before anything is measured, and before the parts of a plan are made.

Where parts move into the result as soon as they are made that is the result and one step, else the parts besides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from luq_gguf.artifacts import existing_folder, require_space


@dataclass(frozen=True)
class PartBytes:
    """Bytes of a part, of its tensors in 16 bits, and whether it stands there already."""

    quantized: int
    source: int
    is_there: bool

    @property
    def step(self) -> int:
        """What is on the disk at once while it is made."""
        return self.quantized if self.is_there else self.source + self.quantized


def require_room_to_keep(target: Path, size: int, folder: Path, parts: list[PartBytes]) -> None:
    """Raise DiskSpaceError unless parts in `folder` fit beside the file of `size` bytes that is made of them."""
    missing = [part for part in parts if not part.is_there]
    most = max((part.source for part in missing), default=0)
    needed = {target.parent: size, folder: sum(part.quantized for part in missing) + most}
    require_spaces(needed, f"making {target.name}")


def require_room_to_grow(target: Path, folder: Path, parts: list[PartBytes]) -> None:
    """Raise DiskSpaceError unless a file fits that grows by these parts, each of which goes when it is in the file."""
    there = sum(part.quantized for part in parts if part.is_there)
    steps = max((part.step for part in parts), default=0)
    needed = {target.parent: sum(part.quantized for part in parts), folder: steps - there}
    require_spaces(needed, f"making {target.name}")


def require_spaces(needed: Mapping[Path, int], what: str) -> None:
    """Raise DiskSpaceError unless each folder's disk has the bytes for `what`; folders on one disk share its room."""
    disks: dict[int, tuple[Path, int]] = {}
    for folder, count in needed.items():
        disk = existing_folder(folder).stat().st_dev
        first, before = disks.get(disk, (folder, 0))
        disks[disk] = first, before + count
    for folder, count in disks.values():
        require_space(folder, count, what)
