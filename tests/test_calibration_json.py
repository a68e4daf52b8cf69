"""JSON that is read piece by piece says what JSON that is read whole says."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luq_gguf import calibration_files, calibration_json
from luq_gguf.calibration import load_calibration
from luq_gguf.errors import CalibrationError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=200)
@given(
    rows=st.lists(VALUES, max_size=6),
    indent=st.sampled_from([None, 0, 2]),
    chunk=st.integers(1, 9),
    plain=st.booleans(),
)
def test_pieces_say_what_the_whole_says(rows: list[Any], indent: int | None, chunk: int, plain: bool) -> None:
    text = "\r\n \t" + json.dumps(rows, indent=indent, ensure_ascii=plain) + " \n"
    usual, calibration_json.CHUNK = calibration_json.CHUNK, chunk
    try:
        handle = io.TextIOWrapper(io.BytesIO(text.encode("utf-8")), encoding="utf-8", newline="")
        found = list(calibration_json._Items(handle))
    finally:
        calibration_json.CHUNK = usual
    assert [value for _, value in found] == rows
    assert [line for line, _ in found] == sorted(line for line, _ in found)
    if indent is None:
        assert {line for line, _ in found} <= {2}
    if indent == 0 and not any(isinstance(row, list | dict) for row in rows):
        assert [line for line, _ in found] == list(range(3, 3 + len(rows)))


def load(path: Path, **options: Any) -> list[str]:
    found = load_calibration(path, held_out_share=0, **options).samples
    return sorted(sample.question or str(sample.text) for sample in found)


def test_a_large_list_is_read_and_named_by_line(tmp_path: Path) -> None:
    filling = "\u4e2d" * 200
    rows = [{"question": f"Number {number}: {filling}?", "answer": "yes"} for number in range(5000)]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    assert path.stat().st_size > 3 * calibration_json.CHUNK
    found = load_calibration(path, held_out_share=0).samples
    assert {sample.question for sample in found} == {row["question"] for row in rows}
    assert {sample.origin for sample in found} == {f"{path}:{2 + 4 * row}, row {row + 1}" for row in range(5000)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"text": "one"},\n {"text": "two"}\n {"text": "three"}]', ":3 is no JSON: , or ] is missing"),
        ('[{"text": "one"},\n {"text": "two"}', ":2 is no JSON: the file ends within the list"),
        ('[{"text": "one"},\n {"text": "two"}, {"text": "thr', ":2 is no JSON: Unterminated string"),
        ('[{"text": "one"},\n {"text": "two"}]\n {"text": "three"}', ":3 is no JSON: something stands behind the list"),
        ('[{"text": "one"},\n {"text": "two"},' + "[" * 100_000, ":2 is no JSON: it is nested too deeply"),
        ('[{"text": "one"},\n {"text": "two"}, 1, "x"]', ":2, row 3: is no object"),
    ],
)
def test_what_stands_before_an_error_is_kept_when_asked_for(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(CalibrationError) as caught:
        load(path)
    assert f"{path}{words}" in str(caught.value)
    assert load(path, skip_bad=True) == ["one", "two"]


def test_rows_a_line_in_a_json_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('\n{"text": "one"}\n{"text": "two"}\n')
    assert load(path) == ["one", "two"]


def test_a_line_that_is_no_utf_8_is_one_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "one"}\r\n{"text": "\xe4"}\r\n{"text": "two"}')
    with pytest.raises(CalibrationError, match=r"rows\.jsonl:2 is not UTF-8"):
        load(path)
    assert load(path, skip_bad=True) == ["one", "two"]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "tsv"])
def test_utf_16_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.{suffix}"
    path.write_text('[{"text": "one"}]', encoding="utf-16")
    with pytest.raises(CalibrationError, match="is not UTF-8 but UTF-16"):
        load(path, skip_bad=True)


def test_too_long_and_too_full_rows_are_bad_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n{"text": "' + "x" * 3000 + '"}\n{"text": "two"}\n')
    monkeypatch.setattr(calibration_json, "MAX_ROW", 1000)
    with pytest.raises(CalibrationError, match=r"rows\.jsonl:2 is longer than 1,000 bytes"):
        load(path)
    assert load(path, skip_bad=True) == ["one", "two"]
    monkeypatch.setattr(calibration_json, "MAX_ROW", 100_000)
    monkeypatch.setattr(calibration_json, "MAX_VALUES", 1000)
    path.write_text('{"text": "one"}\n{"text": "two", "more": [' + "0," * 3000 + "0]}\n")
    with pytest.raises(CalibrationError, match=r"rows\.jsonl:2 is no JSON: it has more than 1,000 values"):
        load(path)


def test_more_rows_than_memory_may_hold_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_files, "MAX_ROWS", 3)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n' * 3)
    assert len(load(path)) == 3
    path.write_text('{"text": "one"}\n' * 4)
    with pytest.raises(CalibrationError, match="more than 3 rows"):
        load(path, skip_bad=True)


def test_progress_of_a_long_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_files, "LONG", 1 << 21)
    path = tmp_path / "rows.jsonl"
    rng = random.Random(0)
    path.write_text("".join(json.dumps({"text": rng.randbytes(500).hex()}) + "\n" for _ in range(4000)))
    told: list[tuple[str, int, int]] = []
    load_calibration(path, progress=lambda *step: told.append(step))
    size = path.stat().st_size >> 20
    assert {(what, total) for what, _, total in told} == {("read MiB", size)}
    assert sorted({done for _, done, _ in told}) == list(range(size + 1))
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
