"""One image preprocessing for calibration, evaluation and questions: any file in, RGB on the model's grid out.

Images are brought to the grid here, once, so that transformers and llama.cpp see the same pixels.
"""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from luq_gguf.errors import ImageError
from luq_gguf.families.base import ImageGrid

MAX_PIXELS = 100_000_000
"""A larger image is refused before it is decoded."""
MAX_ASPECT = 200


def load_image(source: Path | bytes, name: str | None = None) -> Image.Image:
    """Read an image as upright RGB; transparency becomes white, of an animation the first frame is taken.

    `name` stands for the bytes in messages. Raises ImageError for what is no image, cut, or too large.
    """
    shown = name or (str(source) if isinstance(source, Path) else "the image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                _require_sane(image, shown)
                image.seek(0)
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{shown} is no image that can be read", path=shown, hint="give a PNG, JPEG or WebP"
        ) from error
    except Image.DecompressionBombError as error:
        raise _too_large(shown, str(error)) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise ImageError(
            f"{shown} cannot be read: {reason}", path=shown, hint="check that the file is whole"
        ) from error
    except (ValueError, SyntaxError, EOFError, TypeError, IndexError, KeyError, struct_error()) as error:
        raise ImageError(f"{shown} is a broken image: {error}", path=shown, hint="save it again as PNG") from error


def struct_error() -> type[Exception]:
    """What Pillow lets through when a header's numbers do not unpack."""
    import struct

    return struct.error


def _require_sane(image: Image.Image, shown: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(shown, f"{image.width} x {image.height} pixels")


def _too_large(shown: str, what: str) -> ImageError:
    return ImageError(f"{shown} is too large: {what}", path=shown, hint=f"scale it below {MAX_PIXELS:,} pixels")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in {"I", "F"}:
        values = np.asarray(image, dtype=np.float64)
        scale = 255 / 65535 if values.max(initial=0) > 255 else 1
        image = Image.fromarray(np.clip(values * scale, 0, 255).astype(np.uint8))
    if image.mode == "P" or image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def fit_to_grid(image: Image.Image, factor: int, min_pixels: int, max_pixels: int) -> Image.Image:
    """Resize (bicubic) so that both sides are multiples of `factor` and the area lies within the pixels.

    The rule of Qwen2-VL's processor ("smart resize"). An image that fits is returned as it is. Raises
    ImageError where one side is more than 200 times the other.
    """
    width, height = image.size
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(
            f"an image of {width} x {height} pixels is too narrow", path="the image", hint="cut it to a part of it"
        )
    target = grid_size(height, width, factor, min_pixels, max_pixels)
    if target == (height, width):
        return image
    return image.resize((target[1], target[0]), Image.Resampling.BICUBIC)


def grid_size(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Height and width on the grid that `fit_to_grid` brings an image to."""
    new_height, new_width = (max(factor, round(side / factor) * factor) for side in (height, width))
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        return tuple(max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))  # type: ignore[return-value]
    if new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        return tuple(math.ceil(side * grow / factor) * factor for side in (height, width))  # type: ignore[return-value]
    return new_height, new_width


def patchify(
    image: Image.Image, grid: ImageGrid, patch: int, merge: int, frames: int
) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """Normalized patches (rows * columns, 3 * frames * patch * patch), grouped by merged token, and (rows, columns).

    The layout of Qwen2-VL's processor; a still image stands in every one of `frames`.
    """
    pixels = (np.asarray(image, dtype=np.float32) / np.float32(255) - np.float32(grid.mean)) / np.float32(grid.std)
    rows, columns = image.height // patch, image.width // patch
    tiles = pixels.reshape(rows // merge, merge, patch, columns // merge, merge, patch, 3)
    tiles = tiles.transpose(0, 3, 1, 4, 6, 2, 5)[:, :, :, :, :, None]
    tiles = np.broadcast_to(tiles, (*tiles.shape[:5], frames, patch, patch))
    return np.ascontiguousarray(tiles.reshape(rows * columns, -1)), (rows, columns)
