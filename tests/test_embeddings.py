"""Kept embeddings: the same logits with them and without, computed once, and again where they are broken."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from luq_gguf.artifacts import sha256_of
from luq_gguf.bundle import bundle
from luq_gguf.embeddings import Embeddings, EmbeddingStore
from luq_gguf.runtime import Runtime
from tests.families_under_test import QUESTION, SEEING, Exported, Original, export, picture
from tests.picos import build_family
from tests.program import listing

SHAPE = (6, 10)
VALUES = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
RED, BLUE = (Image.new("RGB", (56, 56), color) for color in ("red", "blue"))


def never() -> Embeddings:
    raise AssertionError("computed again")


def kept_by(store: EmbeddingStore, image: Image.Image = RED, make: Callable[[], Embeddings] = never) -> Embeddings:
    return store.get("mmproj", image, 1, SHAPE, make)


class Finished(EmbeddingStore):
    """A store that has everything already."""

    def get(self, mmproj: str, image: Image.Image, number: int, shape: tuple[int, int], make: Any) -> Embeddings:
        return super().get(mmproj, image, number, shape, never)


@pytest.fixture(scope="module", params=SEEING)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Original, Exported]:
    folder = tmp_path_factory.mktemp(request.param)
    original = Original(request.param, build_family(folder / "pico", request.param))
    return original, export(original, folder, "f16")


def test_logits_are_those_without_a_store(exported: tuple[Original, Exported], tmp_path: Path) -> None:
    original, files = exported
    images = [picture(*size, seed=seed) for seed, size in enumerate(original.sizes())]
    turns = (("what color is it?", "red"),)
    asked: list[tuple[Any, ...]] = [*((QUESTION, image) for image in images), (QUESTION, images[0], turns), (QUESTION,)]
    answer = [17, 5, 300]
    said, positions = [], []
    for store in (None, EmbeddingStore(tmp_path), Finished(tmp_path)):
        with files.running(embeddings=store) as runtime:
            said.append([np.vstack([runtime.start(*each), runtime.extend(answer)]) for each in asked])
            positions.append(runtime.prompt_tokens)
    assert len(list(tmp_path.glob("*.npy"))) == len(images)
    for without, first, second in zip(*said, strict=True):
        np.testing.assert_array_equal(first, without)
        np.testing.assert_array_equal(second, without)
    assert len(set(positions)) == 1


def test_another_question_about_an_image_is_not_another_image(
    exported: tuple[Original, Exported], tmp_path: Path
) -> None:
    original, files = exported
    image = picture(*original.sizes()[0])
    with files.running(embeddings=EmbeddingStore(tmp_path)) as runtime:
        first = runtime.start(QUESTION, image)
    with files.running(embeddings=Finished(tmp_path)) as runtime:
        assert not np.array_equal(runtime.start("how many?", image), first)


def test_files_share_an_mmproj_but_not_those_of_another(pico_checkpoint: Path, tmp_path: Path) -> None:
    original = Original("qwen2.5-vl", pico_checkpoint)
    files, other = (export(original, tmp_path, dtype) for dtype in ("f16", "bf16"))
    assert files.mmproj is not None
    bundle(other.text, files.mmproj, tmp_path / "both.gguf")
    store, image = EmbeddingStore(tmp_path / "kept"), picture(112, 112)
    with files.running(embeddings=store) as runtime:
        runtime.start(QUESTION, image)
    before = listing(store.folder)
    for model, mmproj in ((other.text, files.mmproj), (tmp_path / "both.gguf", None)):
        with Runtime(model, mmproj, threads=1, context=1024, embeddings=Finished(store.folder)) as runtime:
            runtime.start(QUESTION, image)
    assert listing(store.folder) == before
    with Runtime(files.text, other.mmproj, threads=1, context=1024, embeddings=store) as runtime:
        runtime.start(QUESTION, image)
    assert len(listing(store.folder)) == 2


def test_images_are_told_apart_as_the_grid_has_them(pico_checkpoint: Path, tmp_path: Path) -> None:
    """More tokens than it has leave an image as it is; fewer make another of it."""
    files = export(Original("qwen2.5-vl", pico_checkpoint), tmp_path, "f16")
    image = picture(112, 112)
    for tokens, number in ((64, 1), (32, 1), (8, 2)):
        with files.running(embeddings=EmbeddingStore(tmp_path / "kept"), image_tokens=tokens) as runtime:
            runtime.start(QUESTION, image)
        assert len(listing(tmp_path / "kept")) == number


def test_what_was_made_is_given_again(tmp_path: Path) -> None:
    made = kept_by(EmbeddingStore(tmp_path), make=lambda: VALUES)
    again = kept_by(EmbeddingStore(tmp_path))
    for found in (made, again):
        assert (found.dtype, found.flags.c_contiguous) == (np.float32, True)
        np.testing.assert_array_equal(found, VALUES)


def test_everything_that_embeddings_depend_on_names_them(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    wider = Image.new("RGB", (112, 28), "red")  # as many pixels, of the same color
    keys: list[tuple[str, Image.Image, int, tuple[int, int]]] = [
        ("mmproj", RED, 1, SHAPE), ("other", RED, 1, SHAPE), ("mmproj", BLUE, 1, SHAPE), ("mmproj", RED, 3, SHAPE),
        ("mmproj", RED, 1, (12, 5)), ("mmproj", wider, 1, SHAPE),
    ]  # fmt: skip
    for number, key in enumerate(keys):
        store.get(*key, lambda key=key, number=number: np.full(key[3], number, np.float32))
    for number, key in enumerate(keys):
        found = store.get(*key, never)
        assert (found.shape, found.min(), found.max()) == (key[3], number, number)


def test_an_mmproj_is_named_by_its_bytes(tmp_path: Path) -> None:
    first, same, other = (tmp_path / name for name in ("a.gguf", "b.gguf", "c.gguf"))
    for path, content in ((first, b"vision"), (same, b"vision"), (other, b"others")):
        path.write_bytes(content)
    store = EmbeddingStore(tmp_path)
    digests = [store.digest(path, path) for path in (first, same, other)]
    assert digests == [sha256_of(path) for path in (first, same, other)]
    first.write_bytes(b"changed")
    assert store.digest(first, first) == sha256_of(first) != digests[0]


@pytest.mark.parametrize("length", [0, 5, 60, 127, 130, -1])
def test_a_cut_file_is_made_again(tmp_path: Path, length: int) -> None:
    store = EmbeddingStore(tmp_path)
    kept_by(store, make=lambda: VALUES)
    (path,) = tmp_path.glob("*.npy")
    path.write_bytes(path.read_bytes()[:length])
    np.testing.assert_array_equal(kept_by(store, make=lambda: VALUES), VALUES)
    np.testing.assert_array_equal(kept_by(store), VALUES)


@pytest.mark.parametrize(
    "other",
    [VALUES.T, VALUES.astype(np.float64), VALUES[:3], np.asfortranarray(VALUES), np.array([{}] * 60).reshape(SHAPE)],
    ids=["turned", "wider", "fewer", "fortran", "objects"],
)
def test_an_array_of_another_form_is_made_again(tmp_path: Path, other: np.ndarray) -> None:
    store = EmbeddingStore(tmp_path)
    kept_by(store, make=lambda: VALUES)
    (path,) = tmp_path.glob("*.npy")
    with path.open("wb") as handle:
        np.save(handle, other)
    np.testing.assert_array_equal(kept_by(store, make=lambda: VALUES), VALUES)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    marks=st.lists(st.tuples(st.integers(10, 127), st.sampled_from(b"(){}'\",0b\x00\n\xff")), min_size=1, max_size=4)
)
def test_a_broken_header_is_never_an_error(tmp_path: Path, marks: list[tuple[int, int]]) -> None:
    store = EmbeddingStore(tmp_path)
    kept_by(store, make=lambda: VALUES)
    (path,) = tmp_path.glob("*.npy")
    content = bytearray(path.read_bytes())
    for place, mark in marks:
        content[place] = mark
    path.write_bytes(content)
    np.testing.assert_array_equal(kept_by(store, make=lambda: VALUES), VALUES)


def test_an_archive_is_no_array(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    kept_by(store, make=lambda: VALUES)
    (path,) = tmp_path.glob("*.npy")
    with path.open("wb") as handle:
        np.savez(handle, VALUES)
    np.testing.assert_array_equal(kept_by(store, make=lambda: VALUES), VALUES)


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="computed again"):
        kept_by(EmbeddingStore(tmp_path))
    assert not list(tmp_path.iterdir())


def test_beyond_the_limit_the_oldest_go_and_the_newest_stays(tmp_path: Path) -> None:
    images = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in range(5)]
    size = VALUES.nbytes + 128
    store = EmbeddingStore(tmp_path, most=3 * size)
    for number, image in enumerate(images):
        found = kept_by(store, image, lambda: VALUES)
        newest = max(tmp_path.glob("*.npy"), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, ns=(number, number))  # clocks may be coarse
        assert sum(path.stat().st_size for path in tmp_path.glob("*.npy")) <= 3 * size
        np.testing.assert_array_equal(found, VALUES)
    for image in images[2:]:
        kept_by(store, image)
    for image in images[:2]:
        with pytest.raises(AssertionError, match="computed again"):
            kept_by(store, image)


def test_what_is_larger_than_the_limit_is_kept_alone(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path, most=10)
    for image in (RED, BLUE):
        np.testing.assert_array_equal(kept_by(store, image, lambda: VALUES), VALUES)
    assert len(list(tmp_path.iterdir())) == 1
    kept_by(store, BLUE)
