"""`luq-gguf calib show`: what a set holds, counted with a model and without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from luq_gguf.activations import analyze
from luq_gguf.calibration import load_calibration
from luq_gguf.checkpoint import Checkpoint
from luq_gguf.families import find_family
from tests.program import run_program


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    for name, size in (("a", (56, 112)), ("b", (280, 280)), ("c", (84, 84))):
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")
    content = [
        {"image": "a.png", "question": "What color?", "answer": "red"},
        {"image": "b.png", "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A box."},
                                             {"from": "human", "value": "And?"}, {"from": "gpt", "value": "Red."}]},
        {"image": "b.png", "question": "How large?"},
        {"image": "c.png", "question": "What color?", "answer": "red"},
        {"question": "How many?", "answer": "one"},
        {"text": "x" * 41},
    ]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, content)) + '\n{"image": "gone.png", "question": "?"}\n')
    return path


def test_a_set_is_counted_without_a_model(rows: Path) -> None:
    done = run_program("calib", "show", rows, "--skip-bad", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["samples"] == {"image": 4, "question": 1, "text": 1}
    assert (found["answered"], found["held_out"], found["conversations"], found["skipped"]) == (4, 1, 1, 1)
    assert sorted(found["sizes"]) == [[56, 112], [84, 84], [280, 280]]
    assert sorted(found["picture_tokens"]) == [8, 9, 100]
    assert found["tokens"]["image"] == 8 + 2 * 100 + 9
    assert found["tokens"]["text"] == 3 + 11  # 12 and 41 bytes
    assert found["exact"] is False
    assert found["reasons"][0].startswith(f"{rows}:7: gone.png does not exist")


def test_with_a_model_the_counts_are_those_of_its_analysis(rows: Path, pico_checkpoint: Path) -> None:
    limit = ("--image-max-tokens", 36)
    done = run_program("calib", "show", rows, "--skip-bad", "--model", pico_checkpoint, *limit, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    checkpoint = Checkpoint.open(pico_checkpoint)
    calibration = load_calibration(rows, skip_bad=True, held_out_share=0)
    made = analyze(checkpoint, find_family(checkpoint.config, checkpoint), calibration, image_tokens=36)
    assert found["tokens"] == made.scores.tokens
    assert made.scores.image_tokens == made.reference.context["image_tokens"] == 36
    assert (max(found["picture_tokens"]), found["exact"]) == (36, True)


def test_the_table_says_what_cannot_be_used(rows: Path) -> None:
    done = run_program("calib", "show", rows, "--skip-bad")
    assert done.returncode == 0, done.stderr
    for words in ("rows.jsonl: 6 samples", "smallest, middle, largest: 56 x 112, 84 x 84, 280 x 280 pixels",
                  "8 to 100, in the middle 9", "1 samples cannot be used:", "gone.png does not exist"):  # fmt: skip
        assert words in done.stdout
    refused = run_program("calib", "show", rows)
    assert (refused.returncode, refused.stderr.count("luq-gguf: ")) == (1, 1)
    assert f"{rows}:7" in refused.stderr


def test_samples_that_do_not_fit_the_model_are_named(tmp_path: Path, pico_checkpoint: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": "word " * 3000}) + "\n" + json.dumps({"text": "fine"}) + "\n")
    refused = run_program("calib", "show", rows, "--model", pico_checkpoint)
    assert refused.returncode == 1
    assert f"{rows}:1: " in refused.stderr
    left = run_program("calib", "show", rows, "--model", pico_checkpoint, "--skip-bad", "--json")
    assert json.loads(left.stdout)["skipped"] == 1


def test_too_few_image_tokens_are_refused() -> None:
    done = run_program("calib", "show", "--image-max-tokens", 3)
    assert (done.returncode, "at least 8" in done.stderr) == (2, True)
