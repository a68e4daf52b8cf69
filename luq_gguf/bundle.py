"""A text GGUF and its mmproj in one file, and back.

The bundle is the text GGUF, then the mmproj, then a trailer that says where they lie. llama.cpp reads the
text model from it as it is, since it ignores bytes after the tensor data; images need the parts apart.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from luq_gguf.artifacts import atomic_path, require_space, sha256_of
from luq_gguf.errors import ArtifactError, GGUFError
from luq_gguf.gguf_file import GGUFFile, align
from luq_gguf.projectors import doubt_pair
from luq_gguf.small_files import require_regular

MAGIC = b"LUQBNDL1"
VERSION = 1
ALIGNMENT = 4096
"""The mmproj begins on a page of its own."""
MAX_NAME = 255
COPY_BYTES = 1 << 22
_TRAILER = struct.Struct(f"<II3Q32s32s{MAX_NAME + 1}p{MAX_NAME + 1}p32s8s")


@dataclass(frozen=True)
class BundleParts:
    """Where the parts of a bundle lie, in bytes, with their names and SHA-256."""

    text_name: str
    text_size: int
    text_sha256: bytes
    mmproj_name: str
    mmproj_offset: int
    mmproj_size: int
    mmproj_sha256: bytes

    def encode(self) -> bytes:
        """The trailer: the fields, a hash over them, and the magic at the very end."""
        fields = (
            VERSION,
            _TRAILER.size,
            self.text_size,
            self.mmproj_offset,
            self.mmproj_size,
            self.text_sha256,
            self.mmproj_sha256,
            self.text_name.encode(),
            self.mmproj_name.encode(),
        )
        seal = hashlib.sha256(_TRAILER.pack(*fields, b"", b"")[: -32 - len(MAGIC)]).digest()
        return _TRAILER.pack(*fields, seal, MAGIC)


def bundle_size(text: int, mmproj: int) -> int:
    """Bytes of the bundle of a text model and a vision part of so many bytes."""
    return align(text, ALIGNMENT) + mmproj + _TRAILER.size


def bundle(text: Path, mmproj: Path, target: Path) -> None:
    """Write `text` and `mmproj` as one file under `target`.

    Raises GGUFError where one of them is no sound GGUF or they are no pair, DiskSpaceError where the bundle would not
    fit.
    """
    _check_roles(text, mmproj)
    text_size, mmproj_size = text.stat().st_size, mmproj.stat().st_size
    parts = BundleParts(
        text_name=_checked_name(text.name, text),
        text_size=text_size,
        text_sha256=bytes.fromhex(sha256_of(text)),
        mmproj_name=_checked_name(mmproj.name, mmproj),
        mmproj_offset=align(text_size, ALIGNMENT),
        mmproj_size=mmproj_size,
        mmproj_sha256=bytes.fromhex(sha256_of(mmproj)),
    )
    require_space(target.parent, bundle_size(text_size, mmproj_size), f"writing {target.name}")
    with atomic_path(target) as partial, partial.open("wb") as handle:
        _copy(text, 0, text_size, handle)
        handle.write(b"\0" * (parts.mmproj_offset - text_size))
        _copy(mmproj, 0, mmproj_size, handle)
        handle.write(parts.encode())


def unbundle(path: Path, folder: Path) -> tuple[Path, Path]:
    """Write the two parts of a bundle into `folder` under the names they had; gives (text, mmproj).

    Raises ArtifactError where the file is no bundle, was cut, or its bytes are not those that went in.
    """
    parts = split_bundle(path)
    text, mmproj = folder / parts.text_name, folder / parts.mmproj_name
    for part in (text, mmproj):
        if part.exists() and part.samefile(path):
            raise ArtifactError(
                f"{part} would overwrite the bundle itself", path=path, hint="give another folder with --out"
            )
    require_space(folder, parts.text_size + parts.mmproj_size, f"unpacking {path.name}")
    _extract(path, 0, parts.text_size, parts.text_sha256, text)
    extract_mmproj(path, mmproj)
    return text, mmproj


def extract_mmproj(path: Path, target: Path) -> None:
    """Write the vision part of a bundle to `target`; errors as `unbundle`."""
    parts = split_bundle(path)
    _extract(path, parts.mmproj_offset, parts.mmproj_size, parts.mmproj_sha256, target)


def is_bundle(path: Path) -> bool:
    """Whether the file ends as a bundle does; says nothing of whether it is whole."""
    try:
        return _read_trailer(path)[-len(MAGIC) :] == MAGIC
    except OSError:
        return False


def split_bundle(path: Path) -> BundleParts:
    """Where the parts lie; raises ArtifactError where the file is no bundle, was cut, or its trailer edited."""
    try:
        raw, size = _read_trailer(path), path.stat().st_size
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}", path=path, hint="give a bundle") from error
    if len(raw) < _TRAILER.size or raw[-len(MAGIC) :] != MAGIC:
        raise ArtifactError(f"{path} is no bundle, or was cut", path=path, hint="make it again with `luq-gguf bundle`")
    fields = _TRAILER.unpack(raw)
    version, _, text_size, offset, mmproj_size, text_sha, mmproj_sha, text_name, mmproj_name, _, _ = fields
    try:
        parts = BundleParts(
            text_name.decode(), text_size, text_sha, mmproj_name.decode(), offset, mmproj_size, mmproj_sha
        )
        sound = parts.encode() == raw and version == VERSION
    except UnicodeDecodeError:
        sound = False
    if not sound or offset != align(text_size, ALIGNMENT) or offset + mmproj_size + _TRAILER.size != size:
        raise _broken(path, "its trailer does not fit the file")
    for name in (parts.text_name, parts.mmproj_name):
        _checked_name(name, path)
    return parts


def _broken(path: Path, what: str) -> ArtifactError:
    return ArtifactError(f"the bundle {path} is broken: {what}", path=path, hint="make or download it again")


def _read_trailer(path: Path) -> bytes:
    require_regular(path)
    with path.open("rb") as handle:
        size = handle.seek(0, 2)
        handle.seek(max(0, size - _TRAILER.size))
        return handle.read()


def _checked_name(name: str, path: Path) -> str:
    """A name that can stand in a folder and nowhere else."""
    if len(name.encode()) > MAX_NAME or Path(name).name != name or name in {"", ".", ".."} or "\0" in name:
        raise ArtifactError(f"{name[:80]!r} cannot be the name of a part of {path}", path=path, hint="rename the file")
    return name


def _check_roles(text: Path, mmproj: Path) -> None:
    opened = {path: GGUFFile.open(path).metadata for path in (text, mmproj)}
    for path, vision in ((text, False), (mmproj, True)):
        is_vision = opened[path].get("general.architecture") == "clip"
        if is_vision != vision:
            kind = "a vision part" if is_vision else "no vision part"
            raise GGUFError(f"{path} is {kind}", path=path, hint="give the text model first, then its mmproj")
        if is_bundle(path):
            raise GGUFError(f"{path} is a bundle already", path=path, hint="unbundle it first")
    doubt_pair(opened[text], opened[mmproj], mmproj)
    if text.name == mmproj.name:
        raise GGUFError(f"both parts are called {text.name}", path=mmproj, hint="rename one of them")


def _extract(path: Path, offset: int, size: int, sha256: bytes, target: Path) -> None:
    with atomic_path(target) as partial:
        with partial.open("wb") as handle:
            digest = _copy(path, offset, size, handle)
        if digest != sha256:
            raise _broken(path, f"the bytes of {target.name} have changed")


def _copy(source: Path, offset: int, size: int, target: BinaryIO) -> bytes:
    """Copy a range of bytes; gives the SHA-256 of what was copied."""
    digest = hashlib.sha256()
    with source.open("rb") as handle:
        handle.seek(offset)
        while size:
            block = handle.read(min(size, COPY_BYTES))
            if not block:
                raise _broken(source, "it was cut while it was read")
            target.write(block)
            digest.update(block)
            size -= len(block)
    return digest.digest()
