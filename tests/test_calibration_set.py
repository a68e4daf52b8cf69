"""The built-in set is what docs/calibration-set.md says: enough of each kind, fit for any model, always the same."""

import hashlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from luq_gguf.calibration_set import built_in_samples
from luq_gguf.images import MAX_IMAGE_TOKENS, Picture, grid_size

QWEN = (28, 4 * 784, 16384 * 784)
"""Qwen2.5-VL's rule: a token is 28 x 28 pixels; least and most pixels."""
PHOTOS = Path(__file__).parents[1] / "luq_gguf" / "calibration_set" / "photos"


@pytest.fixture(scope="module")
def samples():
    return built_in_samples()


@pytest.fixture(scope="module")
def pictures(samples):
    return {sample.picture.name: sample.picture for sample in samples if sample.picture is not None}


@pytest.fixture(scope="module")
def drawn(pictures):
    return {name: picture.read() for name, picture in pictures.items()}


def in_another_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_ids_are_unique_and_every_question_has_an_answer(samples):
    ids = [sample.id for sample in samples]
    assert len(set(ids)) == len(ids)
    for sample in samples:
        for question, answer in (*sample.turns, (sample.question, sample.answer)):
            if sample.text is None:
                assert question.strip()
                assert answer.strip()


def test_pictures_take_100_to_1200_tokens_of_qwen(drawn):
    for name, image in drawn.items():
        assert image.mode == "RGB", name
        height, width = grid_size(image.height, image.width, *QWEN)
        assert 100 <= height * width // 784 <= 1200, (name, image.size)
        capped = grid_size(image.height, image.width, 28, QWEN[1], MAX_IMAGE_TOKENS * 784)
        assert 100 <= capped[0] * capped[1] // 784 <= MAX_IMAGE_TOKENS, (name, image.size)


def test_no_picture_is_empty_or_like_another(drawn):
    assert len({hashlib.sha256(image.tobytes()).digest() for image in drawn.values()}) == len(drawn)
    for name, image in drawn.items():
        spread = max(high - low for low, high in image.getextrema())
        assert spread > 100, name


def test_reading_a_picture_again_gives_the_same_bytes(pictures, drawn):
    for name, picture in pictures.items():
        assert picture.read().tobytes() == drawn[name].tobytes(), name


def test_keys_and_questions_are_the_same_in_every_process(samples):
    code = (
        "from luq_gguf.calibration_set import built_in_samples as b;"
        "print([(s.id, s.question, s.answer, s.text, s.turns, s.picture and s.picture.key) for s in b()])"
    )
    here = [(s.id, s.question, s.answer, s.text, s.turns, s.picture and s.picture.key) for s in samples]
    assert in_another_process(code) == str(here)


def test_listing_draws_nothing_and_imports_no_matplotlib():
    code = (
        "import sys; from luq_gguf.calibration_set import built_in_samples;"
        "built_in_samples(); print([name for name in sys.modules if name in ('matplotlib', 'torch', 'transformers')])"
    )
    assert in_another_process(code) == "[]"


def test_one_picture_has_one_key_and_no_two_share_one(samples, pictures):
    by_name = {}
    for sample in samples:
        if sample.picture is not None:
            assert by_name.setdefault(sample.picture.name, sample.picture.key) == sample.picture.key
    assert len(set(by_name.values())) == len(pictures)
    assert all(isinstance(picture, Picture) and len(picture.key) == 64 for picture in pictures.values())


def test_every_photo_has_its_line_of_provenance():
    rows = [line.split("|")[1:-1] for line in (PHOTOS / "PROVENANCE.md").read_text("utf-8").splitlines()[7:]]
    files = sorted(PHOTOS.glob("*.jpg"))
    assert sorted(row[0].strip() for row in rows) == [file.name for file in files]
    for _, _, author, source, licence, _ in rows:
        assert author.strip()
        assert source.strip().startswith(("scikit-image", "scikit-learn"))
        assert licence.strip().startswith(("CC0", "[CC BY 2.0]", "public domain", "no known copyright restrictions"))
    assert sum(file.stat().st_size for file in files) <= 3_000_000


def test_there_is_enough_of_every_kind(pictures):
    kinds = Counter(name.split("-")[0] for name in pictures)
    least = {"document": 12, "chart": 12, "table": 8, "screen": 10, "sign": 10, "sketch": 8, "photo": 12}
    assert kinds.keys() == least.keys()
    assert all(kinds[kind] >= count for kind, count in least.items()), kinds
    assert kinds.total() >= 64
