"""A plan's file that grows out of its parts while they are made, so that they need no room beside it.

The tensors of a part are copied to their places, flushed, and noted with their digest; only then may the part go. What
was noted is checked before a later run goes on from it; what does not prove to be there is made again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

from luq_gguf.artifacts import Record, move_file, naming_full_disk, read_record, write_record
from luq_gguf.assemble import COPY_BYTES, Blueprint, place_of
from luq_gguf.errors import ArtifactError
from luq_gguf.job import WORK, key_of
from luq_gguf.planning import tensor_order
from luq_gguf.progress import Progress, silent

PREFIX, JOURNAL = "growing-", "journal.json"


class Journal(Record):
    """`journal.json`: the parts in a growing file by key, with the SHA-256 of their tensors there, padding included.

    `target` is the name that the file gets in the output folder, or has got already.
    """

    format: Literal["luq-gguf growing 1"] = "luq-gguf growing 1"
    target: str
    parts: dict[str, str]


@dataclass(frozen=True)
class Growing:
    """The file that becomes `target`, in a folder of its own below the output folder; make it with `open`.

    `parts` are the names of its tensors by the key of their part; `held` are the digests of those that are in it.
    """

    target: Path
    blueprint: Blueprint
    parts: Mapping[str, Sequence[str]]
    progress: Progress = silent
    held: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(
        cls, target: Path, blueprint: Blueprint, parts: Mapping[str, Sequence[str]], progress: Progress = silent
    ) -> Growing:
        """Go on with the file where an earlier run left it, else begin it; files of other plans are dropped."""
        growing = cls(target, blueprint, parts, progress)
        drop_growing(target.parent, but=growing.folder)
        growing.held.update(growing._find_held())
        if not growing._is_moved():
            growing._begin()
        return growing

    @property
    def folder(self) -> Path:
        """Where it grows: its name is made of everything that the bytes depend on."""
        header = hashlib.sha256(self.blueprint.header).hexdigest()
        return self.target.parent / WORK / f"{PREFIX}{key_of(self.target.name, header, list(self.parts))}"

    @property
    def file(self) -> Path:
        """The file, as long as it has not got its final name."""
        return self.folder / self.target.name

    def move(self, part: Path) -> None:
        """Remove a part after its tensors were copied to their places, flushed, and noted, now or in an earlier run.

        Raises ArtifactError where one is missing or of another type or shape, DiskSpaceError where the disk is full.
        """
        if part.stem not in self.held:
            self._take(part, part.stem)
        part.unlink(missing_ok=True)

    def _take(self, part: Path, key: str) -> None:
        found = self.blueprint.find([part], self.parts[key])
        with naming_full_disk(self.file), self.file.open("r+b") as handle:
            self.blueprint.copy(found, handle, self.progress, self._bytes_held())
            handle.flush()
            os.fsync(handle.fileno())
            self.held[key] = self._digest(handle, key)
        write_record(self.folder / JOURNAL, Journal(target=self.target.name, parts=self.held))

    def finish(self) -> None:
        """Give the file, which has all its parts, its final name; the journal stays, to know it by."""
        assert self.held.keys() == self.parts.keys(), self.target
        if self.file.exists():
            move_file(self.file, self.target)

    def _begin(self) -> None:
        """The file in its full length with its header: what is not in it yet is a hole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file.touch()
        with naming_full_disk(self.file), self.file.open("r+b") as handle:
            handle.write(self.blueprint.header)
            handle.truncate(self.blueprint.size_bytes)

    def _find_held(self) -> dict[str, str]:
        """What was noted and is there: in the growing file, or whole in the one with the final name."""
        grows = self.file.is_file()
        noted = _read_journal(self.folder)
        place = self.file if grows else self.target
        if noted is None or not place.is_file():
            return {}
        with place.open("rb") as handle:
            whole = handle.read(len(self.blueprint.header)) == self.blueprint.header
            known = {key: digest for key, digest in noted.parts.items() if key in self.parts}
            found = {key: digest for key, digest in known.items() if self._digest(handle, key) == digest}
        return found if grows or (whole and found.keys() == self.parts.keys()) else {}

    def _is_moved(self) -> bool:
        return not self.file.exists() and self.held.keys() == self.parts.keys()

    def _digest(self, handle: BinaryIO, key: str) -> str:
        """SHA-256 of what stands at the places of a part's tensors."""
        digest = hashlib.sha256()
        for name in tensor_order(self.parts[key]):
            place = place_of(self.blueprint.tensors[name])
            handle.seek(place.start)
            for start in place[::COPY_BYTES]:
                digest.update(handle.read(min(COPY_BYTES, place.stop - start)))
        return digest.hexdigest()

    def _bytes_held(self) -> int:
        return sum(self.blueprint.tensors[name].nbytes for key in self.held for name in self.parts[key])


def drop_growing(out: Path, but: Path | None = None) -> None:
    """Remove what grew in an output folder, except one folder of it."""
    for folder in (out / WORK).glob(f"{PREFIX}*"):
        if folder != but:
            shutil.rmtree(folder)


def bytes_grown(out: Path) -> int:
    """Bytes that the growing files of an output folder have on its disk, with those that got their final name."""
    found = 0
    for folder in (out / WORK).glob(f"{PREFIX}*"):
        noted = _read_journal(folder)
        moved = [out / Path(noted.target).name] if noted else []
        there = [path for path in (*folder.glob("*.gguf"), *moved) if path.is_file()]
        found += there[0].stat().st_blocks * 512 if there else 0
    return found


def _read_journal(folder: Path) -> Journal | None:
    """What was noted, or None where nothing was or it cannot be read: then nothing is known of the file."""
    try:
        return read_record(folder / JOURNAL, Journal)
    except ArtifactError:
        return None
