"""The built-in set is what docs/calibration-set.md says: enough of each kind, fit for any model, always the same."""

import hashlib
import importlib.util
import itertools
import math
import os
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from luq_gguf.calibration_set import built_in_samples, texts
from luq_gguf.images import MAX_IMAGE_TOKENS, Picture, grid_size

QWEN = (28, 4 * 784, 16384 * 784)
"""Qwen2.5-VL's rule: a token is 28 x 28 pixels; least and most pixels."""
ROOT = Path(__file__).parents[1]
PHOTOS = ROOT / "luq_gguf" / "calibration_set" / "photos"


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


def test_there_are_as_many_texts_as_pictures_in_many_languages_and_in_code(samples, pictures):
    written = [sample for sample in samples if sample.picture is None]
    assert len(written) >= len(pictures)
    assert {sample.kind for sample in written} == {"text", "question"}
    counts = Counter(row["language"] for row in texts.rows())
    spoken = [
        "English",
        "German",
        "French",
        "Spanish",
        "Portuguese",
        "Italian",
        "Russian",
        "Chinese",
        "Japanese",
        "Korean",
        "Arabic",
        "Hindi",
    ]
    assert all(counts[language] >= 3 for language in spoken), counts
    assert counts.keys() >= {"Python", "C", "JavaScript", "SQL", "Shell", "JSON", "Rust", "HTML"}


def test_texts_are_written_in_the_script_of_their_language():
    scripts = {"Russian": "CYRILLIC", "Chinese": "CJK", "Japanese": "HIRAGANA", "Korean": "HANGUL", "Arabic": "ARABIC",
               "Hindi": "DEVANAGARI", "Ukrainian": "CYRILLIC"}  # fmt: skip
    for row in texts.rows():
        text = row.get("text") or " ".join(itertools.chain(*row["turns"]))
        assert 150 <= len(text) <= 2500 or row["language"] in {"Chinese", "Japanese", "Korean"}, row["id"]
        wanted = scripts.get(row["language"], "LATIN")
        found = Counter(unicodedata.name(letter).split()[0] for letter in text if letter.isalpha())
        assert found[wanted] >= 0.3 * found.total(), (row["id"], found)


def test_some_samples_are_conversations(samples):
    with_picture = [sample for sample in samples if sample.turns and sample.picture is not None]
    without = [sample for sample in samples if sample.turns and sample.picture is None]
    assert len(with_picture) >= 10
    assert len(without) >= 5


def test_sums_in_answers_are_right(samples):
    answers = [
        answer for sample in samples for _, answer in (*sample.turns, (sample.question, sample.answer)) if answer
    ]
    sums = [found for found in (re.fullmatch(r"(\d+) m²: (.+)\.", answer) for answer in answers) if found]
    assert sums
    for found in sums:
        assert int(found[1]) == sum(map(int, found[2].split(" + ")))
    stacked = re.search(r"Solar (\d+), wind (\d+) and water (\d+) GWh, together (\d+)", " ".join(answers))
    assert stacked is not None
    *parts, total = map(int, stacked.groups())
    assert sum(parts) == total


def answers_about(samples, name):
    asked = [sample for sample in samples if sample.picture is not None and sample.picture.name == name]
    return " ".join(answer for sample in asked for _, answer in (*sample.turns, (sample.question, sample.answer)))


def test_the_bars_are_as_high_as_the_answers_say(samples, drawn):
    pixels = np.asarray(drawn["chart-01"]).astype(int)
    blue = (np.abs(pixels - (0x2F, 0x6D, 0xB5)) <= 2).all(axis=2)
    columns = np.flatnonzero(blue.any(axis=0))
    bars = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)
    heights = [blue[:, bar].sum(axis=0).max() for bar in bars]
    best, month, high, low = re.search(
        r"In (\w+), with \d+ bicycles.*: (\d+) were sold in (\w+), the best month, and (\d+) in",
        answers_about(samples, "chart-01"),
    ).group(1, 3, 2, 4)
    assert best == month == ["January", "February", "March", "April", "May", "June"][int(np.argmax(heights))]
    assert min(heights) / max(heights) == pytest.approx(int(low) / int(high), abs=0.02)


def test_the_needle_stands_where_the_answer_says(samples, drawn):
    pixels = np.asarray(drawn["sign-07"]).astype(int)
    red = (np.abs(pixels - (196, 22, 28)) <= 30).all(axis=2)
    down, right = np.nonzero(red)
    down, right = down - 210, right - 210
    inside = np.hypot(down, right) < 100
    angle = math.degrees(math.atan2(down[inside].mean(), right[inside].mean())) % 360
    value = float(re.search(r"About ([\d.]+) bar", answers_about(samples, "sign-07"))[1])
    assert ((angle - 135) % 360) / 27 == pytest.approx(value, abs=0.15)


def test_the_document_shows_the_table_as_it_is(drawn):
    spec = importlib.util.spec_from_file_location("show", ROOT / "scripts" / "show_calibration_set.py")
    show = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(show)
    assert "\n".join(show.table(drawn)) in (ROOT / "docs" / "calibration-set.md").read_text("utf-8")


def test_charts_do_not_follow_the_settings_of_the_machine(tmp_path, pictures, drawn):
    """A matplotlibrc of the user's changes nothing, nothing is printed, and the settings are as before."""
    (tmp_path / "matplotlibrc").write_text("font.family: serif\naxes.facecolor: black\nsavefig.dpi: 30\nbackend: svg\n")
    code = (
        "import hashlib, matplotlib; from luq_gguf.calibration_set import built_in_samples;"
        "before = dict(matplotlib.rcParams);"
        "found = {s.picture.name: s.picture for s in built_in_samples() if s.picture};"
        "print(hashlib.sha256(found['chart-01'].read().tobytes()).hexdigest());"
        "assert before == dict(matplotlib.rcParams); assert matplotlib.rcParams['savefig.dpi'] == 30"
    )
    environment = {**os.environ, "MATPLOTLIBRC": str(tmp_path), "MPLCONFIGDIR": "/proc/nowhere"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == hashlib.sha256(drawn["chart-01"].tobytes()).hexdigest()
