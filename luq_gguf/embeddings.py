"""What a vision part makes of images, kept on disk: files that share an mmproj need it computed once.

A folder of arrays under names made of the image's pixels and the mmproj's bytes; read through memory maps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from luq_gguf.artifacts import atomic_path, sha256_of

Embeddings = NDArray[np.float32]
MOST = 4 << 30


class EmbeddingStore:
    """Embeddings below a folder, for later runs too; what is broken there is computed again.

    An image takes 4 bytes x tokens x width, 15 MB for 1,024 tokens of a 7B model; beyond `most` bytes the oldest go.
    """

    def __init__(self, folder: Path, most: int = MOST) -> None:
        self.folder, self.most = folder, most
        self._digests: dict[tuple[Path, int, int], str] = {}

    def digest(self, content: Path, file: Path) -> str:
        """What names an mmproj, of which `content` has the bytes; `file` is where it comes from, and hashed once."""
        found = file.stat()
        key = (file.resolve(), found.st_size, found.st_mtime_ns)
        if key not in self._digests:
            self._digests[key] = sha256_of(content)
        return self._digests[key]

    def get(
        self, mmproj: str, image: Image.Image, number: int, shape: tuple[int, int], make: Callable[[], Embeddings]
    ) -> Embeddings:
        """The embeddings (tokens, width) of the piece `number` of a prompt with this image, as its grid has it."""
        name = hashlib.sha256(f"{mmproj} {image.mode} {image.size} {number} {shape}".encode() + image.tobytes())
        path = self.folder / f"{name.hexdigest()[:32]}.npy"
        found = _read(path, shape)
        if found is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as partial, partial.open("wb") as handle:
                np.save(handle, make(), allow_pickle=False)
            self._trim(path)
            found = np.load(path, mmap_mode="r", allow_pickle=False)
        return found

    def _trim(self, kept: Path) -> None:
        """Remove the oldest until the limit holds; never what was just written."""
        files = sorted((file.stat().st_mtime_ns, file.stat().st_size, file) for file in self.folder.glob("*.npy"))
        total = sum(size for _, size, _ in files)
        for _, size, file in files:
            if total > self.most and file != kept:
                file.unlink(missing_ok=True)
                total -= size


def _read(path: Path, shape: tuple[int, int]) -> Embeddings | None:
    try:
        found: Embeddings = np.lib.format.open_memmap(path, mode="r")
    except Exception:  # numpy's reader raises whatever a broken header makes it stumble over
        return None
    fits = found.shape == shape and found.dtype == np.float32 and found.flags.c_contiguous
    return found if fits else None
