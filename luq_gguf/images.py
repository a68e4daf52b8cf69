"""One image preprocessing for calibration, evaluation and questions: any file in, RGB on the model's grid out.

Images are brought to the grid here, once, so that transformers and llama.cpp see the same pixels.
"""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from luq_gguf.errors import CheckpointError, ImageError
from luq_gguf.families.base import Family, ImageGrid

MAX_PIXELS = 100_000_000
"""A larger image is refused before it is decoded."""
FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""Pillow reads others too, some of them by starting programs (Ghostscript for EPS)."""
BAND_PIXELS = 1 << 20
MAX_ASPECT = 200
MIN_IMAGE_TOKENS = 8
"""llama.cpp enlarges an image of fewer tokens."""
MAX_IMAGE_TOKENS = 1024
"""Enough for calibration and questions; what a larger image costs in time grows with its square."""


@dataclass(frozen=True)
class Picture:
    """An image that is read when it is needed, so that many of them take no memory.

    `name` stands for it in messages; `key` is a SHA-256 in hex that changes with its content; `read` gives it as
    upright 8-bit RGB. `size` is its width and height where they are known without reading it.
    """

    name: str
    key: str
    read: Callable[[], Image.Image]
    size: tuple[int, int] | None = None

    def measure(self) -> tuple[int, int]:
        """Its width and height, read where they are not known."""
        return self.size or self.read().size

    @classmethod
    def of(cls, image: Image.Image, name: str = "the image") -> Picture:
        """A picture that is in memory already."""
        key = hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).hexdigest()
        return cls(name, key, lambda: image, image.size)


def load_image(source: Path | bytes, name: str | None = None) -> Image.Image:
    """Read an image as upright 8-bit RGB; transparency becomes white, of an animation the first frame is taken.

    `name` stands for the image in messages. Raises ImageError for what is no image, cut, or too large.
    """
    shown = name or (str(source) if isinstance(source, Path) else "the image")
    if isinstance(source, Path) and not source.is_file():
        what = "is no file" if source.exists() else "does not exist"
        raise ImageError(f"{shown} {what}", path=shown, hint="give a PNG, JPEG or WebP")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_formats()) as image:
                _require_sane(image, shown)
                image.seek(0)
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
                return _to_rgb(image)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        hint = "give a PNG, JPEG or WebP"
        raise ImageError(f"{shown} is no image that can be read", path=shown, hint=hint) from error
    except Image.DecompressionBombError as error:
        raise _too_large(shown, str(error)) from error
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them stumble over
        what = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{shown} is a broken image: {what}", path=shown, hint="save it again as PNG") from error


def _formats() -> list[str]:
    """Those of FORMATS that this Pillow was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _require_sane(image: Image.Image, shown: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(shown, f"{image.width} x {image.height} pixels")


def _too_large(shown: str, what: str) -> ImageError:
    return ImageError(f"{shown} is too large: {what}", path=shown, hint=f"scale it below {MAX_PIXELS:,} pixels")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_gray(image)
    if image.has_transparency_data:
        return _onto_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")  # a copy of a large one takes as much again


def _bands(image: Image.Image) -> Iterator[tuple[int, int]]:
    """First and last row of bands that take little memory."""
    step = max(1, BAND_PIXELS // max(1, image.width))
    return ((top, min(top + step, image.height)) for top in range(0, image.height, step))


def _onto_white(image: Image.Image) -> Image.Image:
    result = Image.new("RGB", image.size)
    for top, bottom in _bands(image):
        band = image.crop((0, top, image.width, bottom)).convert("RGBA")
        result.paste(Image.alpha_composite(Image.new("RGBA", band.size, "white"), band).convert("RGB"), (0, top))
    return result


def _to_gray(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float gray -> 8-bit: Pillow itself would cut values off at 255."""
    stored = np.asarray(image)
    bands = [slice(*rows) for rows in _bands(image)]
    largest = max((float(np.nan_to_num(stored[band].astype(np.float64)).max(initial=0)) for band in bands), default=0.0)
    gray = np.empty(stored.shape, dtype=np.uint8)
    for band in bands:
        values = np.nan_to_num(stored[band].astype(np.float64))
        if image.mode.startswith("I;16") or largest > 255:
            values = values / 257
        elif image.mode == "F" and largest <= 1:
            values = values * 255
        gray[band] = np.clip(values + 0.5, 0, 255).astype(np.uint8)
    return Image.fromarray(gray)


class Limits(NamedTuple):
    """What `fit_to_grid` holds images to: sides in multiples of `factor` pixels, an area in pixels.

    With a `side`, every image becomes a square of that side: widened with the color `padding`, or stretched.
    """

    factor: int
    min_pixels: int
    max_pixels: int
    side: int | None = None
    padding: tuple[int, int, int] | None = None

    def tokens(self, width: int, height: int) -> int:
        """The tokens of a fitted image."""
        return (width // self.factor) * (height // self.factor)


def fit_to_grid(image: Image.Image, limits: Limits) -> Image.Image:
    """Resize (bicubic) so that both sides are multiples of the factor and the area lies within the pixels.

    The rule of Qwen2-VL's processor ("smart resize"), or a square. An image that fits is returned as it is. Raises
    ImageError where one side is more than 200 times the other.
    """
    size = fitted_size(*image.size, limits)
    if size == image.size:
        return image
    if limits.padding is not None and image.width != image.height:
        image = _padded_to_square(image, limits.padding, size[0])
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def _padded_to_square(image: Image.Image, color: tuple[int, int, int], side: int) -> Image.Image:
    """The image, resized so that it fits, in the middle of a square."""
    scale = side / max(image.size)
    inner = image.resize([max(1, round(length * scale)) for length in image.size], Image.Resampling.BICUBIC)
    square = Image.new("RGB", (side, side), color)
    square.paste(inner, ((side - inner.width) // 2, (side - inner.height) // 2))
    return square


def fitted_size(width: int, height: int, limits: Limits) -> tuple[int, int]:
    """Width and height, in pixels, of the image that `fit_to_grid` makes of one of this size; raises as it does."""
    if max(width, height) > MAX_ASPECT * min(width, height):
        shown = f"an image of {width} x {height} pixels"
        raise ImageError(f"{shown} is too narrow", path=shown, hint="cut it to the part that matters")
    if limits.side is not None:
        return limits.side, limits.side
    rows, columns = grid_size(height, width, limits.factor, limits.min_pixels, limits.max_pixels)
    return columns, rows


def grid_size(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Height and width, in pixels, of the image that `fit_to_grid` makes of one of this size."""
    rows, columns = (round(side / factor) * factor for side in (height, width))
    if rows * columns > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows, columns = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    if rows * columns < min_pixels:  # of a small one that was shrunk, too: llama.cpp would enlarge it
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return rows, columns


def grid_limits(rule: ImageGrid, most_tokens: int | None = None) -> Limits:
    """`fit_to_grid`'s arguments for a model: its own rule, within what llama.cpp leaves as it is and `most_tokens`.

    The areas are those of whole tokens, so that two numbers of tokens say it all to who runs the file.
    """
    if rule.side is not None:
        return square_limits(rule.factor, rule.side, rule.padding)
    token = rule.factor**2
    most = min(rule.max_pixels // token, most_tokens or MAX_IMAGE_TOKENS)
    return token_limits(rule.factor, most, least_tokens=-(-rule.min_pixels // token))


def token_limits(factor: int, most_tokens: int | None = None, least_tokens: int | None = None) -> Limits:
    """`fit_to_grid`'s arguments where a token is `factor` pixels wide and high and an image has so many tokens.

    Where the two contradict each other the least holds, and llama.cpp's own least everywhere.
    """
    least = max(MIN_IMAGE_TOKENS, least_tokens or 0)
    return Limits(factor, least * factor**2, max(least, most_tokens or MAX_IMAGE_TOKENS) * factor**2)


def square_limits(factor: int, side: int, padding: tuple[int, int, int] | None) -> Limits:
    """`fit_to_grid`'s arguments where every image becomes a square."""
    return Limits(factor, side * side, side * side, side, padding)


def normalize(image: Image.Image, rule: ImageGrid) -> NDArray[np.float32]:
    """Colors (channels, height, width) from 0 to 1, less the mean and divided by the deviation."""
    pixels = np.asarray(image, dtype=np.float32) / np.float32(255)
    normal = (pixels - np.array(rule.mean, np.float32)) / np.array(rule.std, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1))


def patchify(image: Image.Image, family: Family) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """Normalized patches (rows * columns, 3 * frames * patch * patch) of a fitted image, and (rows, columns).

    The layout of Qwen2-VL's processor: patches that become one token stand together, and a still image
    stands in every frame.
    """
    if family.vision is None:
        raise CheckpointError(f"{family.name} has no vision part", hint="calibrate it with texts only")
    sizes = family.vision
    patch, merge, frames = sizes["patch_size"], sizes["spatial_merge_size"], sizes["temporal_patch_size"]
    pixels = normalize(image, family.image_grid).transpose(1, 2, 0)
    rows, columns = image.height // patch, image.width // patch
    tiles = pixels.reshape(rows // merge, merge, patch, columns // merge, merge, patch, 3)
    tiles = tiles.transpose(0, 3, 1, 4, 6, 2, 5)[:, :, :, :, :, None]
    tiles = np.broadcast_to(tiles, (*tiles.shape[:5], frames, patch, patch))
    return np.ascontiguousarray(tiles.reshape(rows * columns, -1)), (rows, columns)
