"""Images that calibration rows name or hold: encoded bytes in, pictures out.

An image is read and decoded once to see that it can be, then only what names it is kept; it is read again when it is
needed. So memory holds one decoded image, however many there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from PIL import Image

from luq_gguf.errors import CalibrationError, ImageError
from luq_gguf.images import Picture, load_image
from luq_gguf.small_files import read_small

MAX_BYTES = 1 << 30
"""An uncompressed image of as many pixels as are read at all has less."""
SHOWN = 80


@dataclass(frozen=True)
class StoredImage:
    """An image that nobody has looked at yet: its name in messages, what tells it from others, and its bytes.

    `close` is called when no more images are looked at for the first time.
    """

    name: str
    identity: str
    read: Callable[[], bytes]
    close: Callable[[], None] | None = None


def image_below(folder: Path, name: str) -> StoredImage:
    """The image of a path in a row; raises CalibrationError where it can be no path. Reads nothing yet."""
    if name.startswith("data:"):
        raise CalibrationError("its image stands in the row itself", hint="save it as a file and name that")
    if "://" in name[:12] and not name.startswith("file://"):
        raise CalibrationError(f"{name[:SHOWN]} is an address", hint="download the image and name its file")
    return StoredImage(name, f"path:{name}", partial(_read_below, folder, name.removeprefix("file://")))


def _read_below(folder: Path, name: str) -> bytes:
    """The bytes of a file below a folder; links that lead out of it are refused."""
    try:
        home = folder.resolve()
        path = (home / name).resolve()
        if not path.is_relative_to(home):
            raise CalibrationError(f"{name} leads out of {home.name}/", hint="put images beside what names them")
        if not path.exists():
            hint = f"image paths begin in {home.name}/"
            raise ImageError(f"{name} does not exist", path=name, hint=hint)
        return read_small(path, MAX_BYTES)
    except OSError as error:
        raise ImageError(f"cannot read {name}: {error.strerror}", path=name, hint="give a PNG, JPEG or WebP") from error
    except (ValueError, RuntimeError) as error:  # a path that cannot be resolved
        raise CalibrationError(f"{name!r} is no path: {error}", hint="give the path of an image") from error


class Looker:
    """Looks at images, at equal ones once; use as a context manager."""

    def __init__(self) -> None:
        self._closing: dict[Callable[[], None], None] = {}
        self._pictures: dict[str, Picture] = {}
        self._sizes: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for close in self._closing:
            close()

    def picture(self, image: StoredImage) -> Picture:
        """The picture of an image; raises ImageError or CalibrationError where it cannot be read."""
        if image.identity not in self._pictures:
            self._pictures[image.identity] = self._look(image)
        return self._pictures[image.identity]

    def _look(self, image: StoredImage) -> Picture:
        if image.close is not None:
            self._closing[image.close] = None
        content = image.read()
        key = hashlib.sha256(content).hexdigest()
        if key not in self._sizes:
            self._sizes[key] = load_image(content, image.name).size
        return Picture(image.name, key, partial(_read_again, image, key), self._sizes[key])


def _read_again(image: StoredImage, key: str) -> Image.Image:
    content = image.read()
    if hashlib.sha256(content).hexdigest() != key:
        hint = "run the command again"
        raise ImageError(f"{image.name} has changed since it was looked at", path=image.name, hint=hint)
    return load_image(content, image.name)
