"""Images of every kind end as RGB on the model's grid, the same pixels that transformers makes of them."""

from __future__ import annotations

import contextlib
import io
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from luq_gguf.checkpoint import Checkpoint
from luq_gguf.demo.scenes import draw_scene, make_scene
from luq_gguf.errors import CheckpointError, ImageError
from luq_gguf.families import find_family
from luq_gguf.families.base import ImageGrid
from luq_gguf.images import (
    MAX_ASPECT,
    MAX_PIXELS,
    MIN_IMAGE_TOKENS,
    Limits,
    fit_to_grid,
    fitted_size,
    grid_limits,
    grid_size,
    load_image,
    patchify,
    token_limits,
)


@pytest.fixture(scope="module")
def family(pico_checkpoint):
    checkpoint = Checkpoint.open(pico_checkpoint)
    return find_family(checkpoint.config, checkpoint)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def two_halves(mode: str, left, right, size: tuple[int, int] = (8, 4)) -> Image.Image:
    image = Image.new(mode, size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def sixteen_bits(left: int, right: int) -> Image.Image:
    return Image.fromarray(np.repeat(np.array([[left, right]], dtype=np.uint16), 4, axis=1).repeat(4, axis=0))


def test_a_file_and_its_bytes_are_the_same_image(tmp_path):
    scene = draw_scene(make_scene(5))
    path = tmp_path / "scene.png"
    scene.save(path)
    for image in (load_image(path), load_image(path.read_bytes())):
        assert image.mode == "RGB"
        assert image.tobytes() == scene.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_image_upright(orientation):
    upright = Image.fromarray(np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what turns upright pixels into stored ones
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert load_image(encoded(stored, "PNG", exif=exif)).tobytes() == upright.tobytes()


@pytest.mark.parametrize(
    ("image", "form", "left", "right"),
    [
        (two_halves("RGBA", (255, 0, 0, 255), (0, 0, 0, 0)), "PNG", (255, 0, 0), (255, 255, 255)),
        (two_halves("RGBA", (0, 0, 0, 128), (0, 0, 255, 255)), "PNG", (127, 127, 127), (0, 0, 255)),
        (two_halves("LA", (100, 255), (0, 0)), "PNG", (100, 100, 100), (255, 255, 255)),
        (two_halves("L", 7, 200), "PNG", (7, 7, 7), (200, 200, 200)),
        (two_halves("1", 0, 1), "PNG", (0, 0, 0), (255, 255, 255)),
        (two_halves("CMYK", (0, 0, 0, 0), (0, 255, 255, 0)), "TIFF", (255, 255, 255), (255, 0, 0)),
        (sixteen_bits(65535, 257), "PNG", (255, 255, 255), (1, 1, 1)),
        (sixteen_bits(25700, 12850), "PNG", (100, 100, 100), (50, 50, 50)),
        (sixteen_bits(250, 0), "PNG", (1, 1, 1), (0, 0, 0)),
        (two_halves("I", 65535, 0), "TIFF", (255, 255, 255), (0, 0, 0)),
        (two_halves("I", 250, 3), "TIFF", (250, 250, 250), (3, 3, 3)),
        (two_halves("F", 1.0, 0.5), "TIFF", (255, 255, 255), (128, 128, 128)),
        (two_halves("F", 200.0, math.nan), "TIFF", (200, 200, 200), (0, 0, 0)),
    ],
)
def test_every_mode_becomes_rgb(image, form, left, right):
    loaded = load_image(encoded(image, form))
    assert (loaded.mode, loaded.size) == ("RGB", image.size)
    assert loaded.getpixel((0, 0)) == pytest.approx(left, abs=1)
    assert loaded.getpixel((7, 3)) == pytest.approx(right, abs=1)


def test_palettes_with_and_without_transparency():
    image = two_halves("RGB", (255, 0, 0), (0, 0, 255)).quantize(2)
    assert load_image(encoded(image, "PNG")).getpixel((0, 0)) == (255, 0, 0)
    hidden = image.getpixel((7, 0))
    loaded = load_image(encoded(image, "PNG", transparency=hidden))
    assert (loaded.getpixel((0, 0)), loaded.getpixel((7, 0))) == ((255, 0, 0), (255, 255, 255))


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (6, 6), color) for color in ("red", "blue", "green")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_image(data).getpixel((3, 3)) == (255, 0, 0)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        b"<!doctype html><html><body>404 not found</body></html>",
        b"\x00" * 64,
        encoded(Image.effect_noise((64, 64), 90), "PNG")[:400],
        encoded(Image.effect_noise((64, 64), 90), "JPEG")[:300],
        encoded(Image.effect_noise((64, 64), 90), "PNG")[:20],
        encoded(Image.new("RGB", (64, 64)), "BMP")[:80],
    ],
)
def test_what_is_no_whole_image_is_refused(data):
    with pytest.raises(ImageError, match="upload 7") as caught:
        load_image(data, "upload 7")
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_formats_that_start_programs_are_not_opened():
    data = encoded(Image.new("RGB", (8, 8)), "EPS")
    assert Image.open(io.BytesIO(data)).format == "EPS"
    with pytest.raises(ImageError, match="no image that can be read"):
        load_image(data)


@pytest.mark.parametrize("form", ["BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP"])
def test_every_usual_format_is_read(form):
    loaded = load_image(encoded(Image.new("RGB", (32, 32), (200, 100, 0)), form))
    assert loaded.getpixel((9, 9)) == pytest.approx((200, 100, 0), abs=3)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(ImageError, match=r"gone\.png does not exist"):
        load_image(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="is no file"):
        load_image(tmp_path)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has hardly any data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(MAX_PIXELS // 10_000 + 1, 10_000), (60_000, 60_000)])
def test_bombs_are_refused_before_they_are_decoded(size):
    with pytest.raises(ImageError, match="too large"):
        load_image(png_header(*size))


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(0, 200))
def test_a_damaged_image_gives_an_image_or_our_error(noise, place):
    data = bytearray(encoded(Image.effect_noise((16, 16), 50), "PNG"))
    data[place : place + len(noise)] = noise
    with contextlib.suppress(ImageError):
        assert load_image(bytes(data)).mode == "RGB"


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([(3136, 12845056), (6272, 802816), (3136, 401408)]))
def test_the_grid_is_the_processors(height, width, pixels):
    if max(height, width) <= 200 * min(height, width):
        assert grid_size(height, width, 28, *pixels) == smart_resize(height, width, 28, *pixels)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 400), st.integers(1, 400))
def test_fitted_images_lie_on_the_grid_and_stay_as_they_are(height, width):
    if max(height, width) > 200 * min(height, width):
        return
    fitted = fit_to_grid(Image.new("RGB", (width, height), "teal"), Limits(28, 6272, 100352))
    assert (fitted.width % 28, fitted.height % 28) == (0, 0)
    assert 6272 <= fitted.width * fitted.height <= 100352
    assert fit_to_grid(fitted, Limits(28, 6272, 100352)) is fitted
    assert fitted.getpixel((0, 0)) == (0, 128, 128)


def test_one_pixel_is_enlarged_and_a_line_refused():
    assert fit_to_grid(Image.new("RGB", (1, 1), "red"), Limits(28, 3136, 401408)).size == (56, 56)
    with pytest.raises(ImageError, match="401 x 2 pixels is too narrow"):
        fit_to_grid(Image.new("RGB", (401, 2)), Limits(28, 3136, 401408))


def test_limits_keep_within_what_llama_cpp_takes_as_it_is():
    mean = (0.5, 0.5, 0.5)
    assert grid_limits(ImageGrid(28, 3136, 12845056, mean, mean)) == Limits(28, 8 * 784, 1024 * 784)
    assert grid_limits(ImageGrid(28, 100 * 784, 500 * 784, mean, mean)) == Limits(28, 100 * 784, 500 * 784)


@pytest.mark.parametrize("size", [(112, 112), (56, 140), (280, 84)])
def test_patches_are_the_processors(family, pico_checkpoint, size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    processor = Qwen2VLImageProcessorPil.from_pretrained(pico_checkpoint)
    expected = processor(images=[image], return_tensors="np")
    patches, grid = patchify(image, family)
    assert (1, *grid) == tuple(expected["image_grid_thw"][0])
    assert patches.dtype == np.float32
    np.testing.assert_allclose(patches, expected["pixel_values"], atol=1e-6)


def test_a_resized_image_is_the_processors(family, pico_checkpoint):
    """Same rule and same filter: only the rounding to 8 bits may differ."""
    image = draw_scene(make_scene(1)).resize((333, 211))
    processor = Qwen2VLImageProcessorPil.from_pretrained(pico_checkpoint)
    expected = processor(images=[image], return_tensors="np")
    patches, grid = patchify(fit_to_grid(image, grid_limits(family.image_grid)), family)
    assert (1, *grid) == tuple(expected["image_grid_thw"][0])
    np.testing.assert_allclose(patches, expected["pixel_values"], atol=0.02)


def test_a_text_model_takes_no_image(family):
    class TextOnly(type(family)):
        vision = None

        def __init__(self):
            pass

    with pytest.raises(CheckpointError, match="no vision part"):
        patchify(Image.new("RGB", (56, 56)), TextOnly())


def test_loading_leaves_the_file_closed(tmp_path: Path):
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(path)
    image = load_image(path)
    path.unlink()
    assert image.getpixel((0, 0)) == (0, 0, 0)


@given(st.integers(20, 4000), st.integers(20, 4000), st.integers(MIN_IMAGE_TOKENS, 64))
def test_an_image_that_is_made_smaller_keeps_the_tokens_that_llama_cpp_wants(
    width: int, height: int, most: int
) -> None:
    """Below them llama.cpp would enlarge it again, and the model would see other pixels than the calibration."""
    if max(width, height) > MAX_ASPECT * min(width, height):
        return
    limits = token_limits(28, most)
    columns, rows = (side // 28 for side in fitted_size(width, height, limits))
    assert columns * rows >= MIN_IMAGE_TOKENS
