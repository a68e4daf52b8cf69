"""Every family through the program: convert to a budget in bytes, verify, ask."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.families_under_test import READING, SEEING, picture
from tests.hostile import run
from tests.picos import build_family
from tests.program import QUICK


@pytest.fixture(scope="module", params=[*SEEING, *READING])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_family(tmp_path_factory.mktemp(family) / f"Pico-{family}", family, shards=2)


@pytest.fixture
def quick(family: str) -> tuple[str, ...]:
    """Text-only models are calibrated with the texts of the general set, of which the scenes have few."""
    return QUICK if family in SEEING else ("--calib", "general", *QUICK[2:])


def sizes_of(model: Path, capfd: pytest.CaptureFixture[str]) -> list[int]:
    code, out, err = run(capfd, "plan", model, "--low-type", "Q2_K", "--json")
    assert code == 0, err
    return list(json.loads(out)["sizes"])


def test_a_budget_in_bytes_is_met_and_the_file_answers(
    family: str, model: Path, quick: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sizes, target = sizes_of(model, capfd), tmp_path / "out"
    budget = sizes[1] + 2000
    code, out, err = run(capfd, "convert", model, "--out", target, "--max-size", budget, *quick, "--json")
    assert code == 0, err
    made = json.loads(out)
    assert made["size_bytes"] == Path(made["model"]).stat().st_size <= budget
    assert made["low_layers"]
    assert (made["mmproj"] is not None) == (family in SEEING)
    assert made["mmproj_layout"] == ("exact" if family == "llava-1.5" else None)
    code, out, err = run(capfd, "verify", target)
    assert code == 0, out + err
    if family not in SEEING:
        code, out, err = run(capfd, "ask", made["model"], "How many?", "--max-tokens", 3, "--threads", 1)
        assert (code, bool(out.strip())) == (0, True), err
        return
    picture(112, 112).save(tmp_path / "picture.png")
    question = ("--image", tmp_path / "picture.png", "What is in the picture?", "--max-tokens", 3, "--threads", 1)
    code, out, err = run(capfd, "ask", made["model"], "--mmproj", made["mmproj"], *question)
    assert code == 0, err


def test_the_same_conversion_again_does_nothing(
    model: Path, family: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if family not in ("llava-1.5", "qwen3"):
        pytest.skip("one with a layout and one without vision are enough")
    quick = QUICK if family in SEEING else ("--calib", "general", *QUICK[2:])
    found = [run(capfd, "convert", model, "--out", tmp_path, "--low-layers", 1, *quick, "--json") for _ in range(2)]
    assert [code for code, _, _ in found] == [0, 0], found[-1][2]
    first, second = (json.loads(out) for _, out, _ in found)
    assert second["seconds"] == {}
    assert {**first, "seconds": {}} == second


def test_the_layout_is_said_and_can_be_chosen(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = build_family(tmp_path / "Pico", "llava-1.5")
    code, out, err = run(capfd, "export", model, "--out", tmp_path / "default")
    assert code == 0, err
    assert "vision part: laid out 'exact'" in out
    code, out, err = run(capfd, "export", model, "--out", tmp_path / "standard", "--mmproj-layout", "standard")
    assert code == 0, err
    assert "vision part: laid out 'standard'" in out
    default, standard = (next((tmp_path / name).glob("mmproj-*")) for name in ("default", "standard"))
    assert default.stat().st_size > standard.stat().st_size
    code, _, err = run(capfd, "export", model, "--out", tmp_path / "bad", "--mmproj-layout", "wide")
    assert code == 2
    assert "no layout 'wide'; known are exact, no-class, standard" in err


def test_a_text_model_has_no_bundle_and_takes_no_pictures(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = build_family(tmp_path / "Pico", "qwen3")
    code, _, err = run(capfd, "convert", model, "--out", tmp_path / "out", "--bundle", *QUICK)
    assert (code, "takes no images" in err) == (2, True)
    rows = tmp_path / "rows.jsonl"
    picture(112, 112).save(tmp_path / "a.png")
    rows.write_text(json.dumps({"image": "a.png", "question": "What?", "answer": "red"}) + "\n")
    code, _, err = run(capfd, "convert", model, "--out", tmp_path / "out", "--calib", rows, "--threads", 1)
    assert code == 1
    assert "holds no sample that this model takes; it takes no images: give texts" in err


def test_a_square_image_has_the_tokens_it_has(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """576 of a context of 1,024: more than half, which is no matter where they cannot be fewer."""
    model = build_family(tmp_path / "Pico", "llava-1.5", image_size=336)
    shown = ("calib", "show", "shapes", "--model", model, "--samples", 12, "--json")
    code, out, err = run(capfd, *shown)
    assert code == 0, err
    assert set(json.loads(out)["picture_tokens"]) == {576}
    code, _, err = run(capfd, *shown, "--image-max-tokens", 100)
    assert code == 2
    assert "an image of this model always has 576 tokens, 100 are allowed; leave --image-max-tokens out" in err


def test_a_llama_of_either_tokenizer_has_a_table_of_sizes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`plan MODEL` reads the tokenizer where it is there; SentencePiece's is not what the class assumes."""
    for family, vocabulary in (("llama", "llama"), ("llama", "llava-1.5")):
        model = build_family(tmp_path / vocabulary, family)
        other = build_family(tmp_path / f"{vocabulary}-tokenizer", vocabulary)
        config = json.loads((model / "config.json").read_text())
        config["vocab_size"] = json.loads((other / "config.json").read_text()).get("vocab_size", 512)
        (model / "config.json").write_text(json.dumps(config))
        for path in other.glob("*token*"):
            (model / path.name).write_bytes(path.read_bytes())
        code, out, err = run(capfd, "plan", model, "--json")
        assert code == 0, err
        assert not any("without tokenizer.json" in note for note in json.loads(out)["notes"])
