"""`luq-gguf eval` from outside: tables and JSON of the demo model, going on after a kill, every refusal in one line."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from luq_gguf import pipeline
from luq_gguf.cli import main
from luq_gguf.demo import CHECKPOINT, FRESH_SEED
from luq_gguf.demo.scenes import ask_about, draw_scene, make_scene
from luq_gguf.pipeline import Settings
from luq_gguf.runtime import Runtime
from tests.exported import export_both
from tests.program import Run, command, listing, result_of, run_program

IMAGES = 4


@pytest.fixture(scope="module")
def demo(analyzed_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo model's 16-bit files and the folder of its analysis."""
    text, mmproj = export_both(CHECKPOINT, tmp_path_factory.mktemp("demo"))
    return {"text": text, "mmproj": mmproj, "analysis": analyzed_demo}


def questions_of(number: int) -> list[tuple[str, str]]:
    """A question about a drawn scene whose answer is yes, and one whose answer is no."""
    scene, found = make_scene(FRESH_SEED + 200 + number), dict[str, str]()
    for seed in range(100):
        asked = ask_about(scene, "yes/no", random.Random(seed))
        found.setdefault(asked.answer, asked.text)
    return [(found["yes"], "Yes"), (found["no"], "No")]


@pytest.fixture(scope="module")
def mme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MME's table: scenes in two subtasks, two questions about each, the pictures in files."""
    folder = tmp_path_factory.mktemp("mme")
    lines = ["index\timage_path\tquestion\tanswer\tcategory"]
    for number in range(IMAGES):
        category = ("color", "existence")[number % 2]
        (folder / category).mkdir(exist_ok=True)
        draw_scene(make_scene(FRESH_SEED + 200 + number)).save(folder / category / f"{number}.png")
        lines += [
            f"{2 * number + place}\t{category}/{number}.png\t{question}\t{answer}\t{category}"
            for place, (question, answer) in enumerate(questions_of(number))
        ]
    (folder / "MME.tsv").write_text("\n".join([*lines, ""]))
    return folder / "MME.tsv"


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["eval", "--threads", "1", *map(str, arguments)])
    out, err = capfd.readouterr()
    return int(ended.value.code or 0), out, err


def evaluated(capfd: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    code, out, err = run(capfd, *arguments, "--json")
    assert code == 0, err
    found: list[dict[str, Any]] = json.loads(out)
    return found


def refused(capfd: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    """The one line that was said."""
    got, out, err = run(capfd, *arguments)
    assert got == code, err
    assert out == ""
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("luq-gguf: ")]
    assert line == err.splitlines()[-1]
    assert "unexpected" not in line
    return line


def test_a_file_against_the_folder_of_its_analysis(demo: dict[str, Path], tmp_path: Path, capfd) -> None:
    arguments = (demo["text"], "--mmproj", demo["mmproj"], "--ref", demo["analysis"])
    (found,) = evaluated(capfd, *arguments)
    assert found.keys() == {"model", "size_bytes", "quality", "benchmark", "reference_benchmark", "accuracy_drop"}
    assert (found["model"], found["size_bytes"]) == (str(demo["text"]), demo["text"].stat().st_size)
    groups = found["quality"]["groups"]
    assert groups["all"]["samples"] == groups["image"]["samples"] + groups["question"]["samples"] == 12
    assert groups["all"]["figures"]["agreement"]["value"] == 1
    assert (demo["analysis"] / ".work" / "embeddings").is_dir()
    code, out, err = run(capfd, *arguments)
    assert code == 0, err
    words = " ".join(out.split())
    assert f"{demo['text'].stat().st_size:,} bytes" in words
    assert "same token, % 100.0 (100.0..100.0)" in words
    for name, form, factor in (("perplexity", "{:.3f}", 1), ("exact", "{:.1f}", 100), ("divergence", "{:.4f}", 1)):
        for group in groups.values():
            value, low, high = (form.format(factor * group["figures"][name][key]) for key in ("value", "low", "high"))
            assert f"{value} ({low}..{high})" in words


def test_several_files_against_a_16_bit_one(demo: dict[str, Path], tmp_path: Path, capfd) -> None:
    rows = tmp_path / "rows.jsonl"
    asked = {"What is the opposite of hot?": "Cold.", "What color is snow?": "red"}
    rows.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in asked.items()))
    files = (demo["text"], demo["text"])
    found = evaluated(capfd, *files, "--ref", demo["text"], "--data", rows, "--work", tmp_path / "work")
    assert len(found) == 2
    assert found[0] == found[1]
    assert found[0]["quality"]["groups"].keys() == {"all", "question"}
    assert {each["said"]: each["score"] for each in found[0]["benchmark"]["answers"]} == {"cold": 1, "white": 0}
    assert found[0]["benchmark"]["figures"]["score"]["value"] == 50
    code, out, _ = run(capfd, *files, "--ref", demo["text"], "--data", rows, "--work", tmp_path / "work")
    assert code == 0
    words = " ".join(out.split())
    assert "exact, 2 questions of rows.jsonl" in words
    assert "drop against 16 bits: 0.0 % of its score" in words
    assert words.count("50.0 (0.0..100.0) 50.0 (0.0..100.0)") == 2


def mme_by_hand(table: Path, answers: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Every subtask's sum, counted from the answers alone."""
    rows = [line.split("\t") for line in table.read_text().splitlines()[1:]]
    said = {each["id"]: each["said"].lower()[:4] for each in answers}
    right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for index, image, _, answer, category in rows:
        right[category][image].append(answer.lower() in said[index])
    return {
        category: 100 * sum(map(sum, images.values())) / sum(map(len, images.values()))
        + 100 * sum(map(all, images.values())) / len(images)
        for category, images in right.items()
    }


def test_mme_of_drawn_scenes(demo: dict[str, Path], mme: Path, tmp_path: Path, capfd) -> None:
    options = ("--mmproj", demo["mmproj"], "--benchmark", "MME", "--data", mme, "--work", tmp_path)
    (found,) = evaluated(capfd, demo["text"], *options)
    result, wanted = found["benchmark"], mme_by_hand(mme, found["benchmark"]["answers"])
    assert (found["quality"], result["benchmark"], result["data"]) == (None, "mme", "MME.tsv")
    figures = {name: figure["value"] for name, figure in result["figures"].items()}
    total = sum(wanted.values())
    assert figures == pytest.approx({"score": total, "perception": total, "cognition": 0, **wanted})
    assert total > 200  # it knows such scenes
    with Runtime(demo["text"], demo["mmproj"], threads=1) as runtime:
        image = draw_scene(make_scene(FRESH_SEED + 200))
        for (question, answer), given in zip(questions_of(0), result["answers"][:2], strict=True):
            assert given["answers"] == [answer]
            assert given["said"] == runtime.answer(question, image)
    code, out, _ = run(capfd, demo["text"], *options)
    assert code == 0
    assert f"mme, {2 * IMAGES} questions of MME.tsv" in " ".join(out.split())


def test_an_evaluation_that_was_killed_goes_on(demo: dict[str, Path], tmp_path: Path) -> None:
    count = 60
    for number in range(count):
        draw_scene(make_scene(FRESH_SEED + 300 + number)).save(tmp_path / f"{number}.png")
    lines = [f"{n}\t{n}.png\tDescribe the picture.\ta red star" for n in range(count)]
    (tmp_path / "t.tsv").write_text("\n".join(["index\timage\tquestion\tanswer", *lines, ""]))
    arguments: list[str | int | Path] = [
        "eval", demo["text"], "--mmproj", demo["mmproj"], "--benchmark", "gqa", "--data", tmp_path / "t.tsv",
        "--work", tmp_path / "work", "--threads", 1, "--json",
    ]  # fmt: skip

    def kept() -> bytes:
        return b"".join(path.read_bytes() for path in (tmp_path / "work").glob("answers-*.jsonl"))

    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + 120
        while kept().count(b"\n") < 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.005)
    finally:
        process.kill()
        process.communicate()
    before = kept()
    while before != (before := kept()):  # what computes ends a moment after the process that watches it
        time.sleep(0.2)
    whole = before[: before.rindex(b"\n") + 1]
    done = whole.count(b"\n")
    assert 2 <= done < count
    (path,) = (tmp_path / "work").glob("answers-*.jsonl")
    path.write_bytes(whole + b'["never asked", "cut of')
    images = listing(tmp_path / "work" / "embeddings")
    (found,) = result_of_list(run_program(*arguments))
    after = kept()
    assert after.startswith(whole)
    assert [json.loads(line)[0] for line in after.splitlines()] == [str(n) for n in range(count)]
    assert listing(tmp_path / "work" / "embeddings").items() >= images.items()
    answers = found["benchmark"]["answers"]
    assert [[each["id"], each["said"]] for each in answers] == [json.loads(line) for line in after.splitlines()]
    assert len({each["said"] for each in answers}) > count // 2


def result_of_list(done: Run) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_an_evaluation_that_cannot_be_is_exit_2(demo: dict[str, Path], mme: Path, capfd) -> None:
    cases: list[tuple[tuple[object, ...], str]] = [
        ((demo["text"],), "nothing to judge by"),
        ((demo["text"], "--benchmark", "mme"), "--benchmark mme has no data"),
        ((demo["text"], "--benchmark", "mme", "--ref", demo["analysis"]), "--benchmark mme has no data"),
        ((demo["text"], "--benchmark", "imagenet", "--data", mme), "unknown benchmark 'imagenet'"),
        ((), "MODELS"),
        ((demo["text"], "--ref"), "--ref"),
    ]
    for arguments, words in cases:
        assert words.lower() in refused(capfd, 2, *arguments).lower()


def test_what_cannot_be_judged_by_is_exit_1(
    demo: dict[str, Path], mme: Path, converted: Run, tmp_path: Path, capfd
) -> None:
    other = Path(result_of(converted)["model"]).parent
    (tmp_path / "open.jsonl").write_text('{"question": "Why?"}\n')
    (tmp_path / "noise.jsonl").write_text("no JSON\n")
    (tmp_path / "plain.tsv").write_text("index\tquestion\tanswer\n1\tWhy?\tso\n")
    (tmp_path / "empty").mkdir()
    seeing = (demo["text"], "--mmproj", demo["mmproj"], "--work", tmp_path / "work")
    blind = (demo["text"], "--work", tmp_path / "work")
    cases: list[tuple[tuple[object, ...], str]] = [
        ((*seeing, "--ref", other), "tokens, the reference says "),
        ((*seeing, "--ref", tmp_path / "empty"), "holds no reference.safetensors"),
        ((*seeing, "--ref", tmp_path / "nowhere"), "nowhere"),
        ((*seeing, "--ref", mme), "MME.tsv"),
        ((*seeing, "--data", tmp_path / "open.jsonl"), "open.jsonl:1 has no answer"),
        ((*seeing, "--data", tmp_path / "noise.jsonl"), "noise.jsonl:1"),
        ((*seeing, "--data", tmp_path / "nowhere.jsonl"), "nowhere.jsonl"),
        ((*seeing, "--data", tmp_path / "nowhere.tsv", "--benchmark", "pope"), "cannot read"),
        ((*seeing, "--data", tmp_path / "plain.tsv", "--benchmark", "mmbench"), "plain.tsv:2 has no A, B"),
        ((*seeing, "--data", tmp_path / "open.jsonl", "--benchmark", "gqa"), "open.jsonl is no table"),
        ((*blind, "--data", mme, "--benchmark", "mme"), "--mmproj"),
        ((*blind, "--ref", demo["analysis"]), "--mmproj"),
        ((tmp_path / "nowhere.gguf", "--ref", demo["analysis"]), "nowhere.gguf"),
        ((mme, "--ref", demo["analysis"]), "MME.tsv"),
    ]
    for arguments, words in cases:
        assert words in refused(capfd, 1, *arguments)


def test_samples_that_changed_since_the_analysis_are_exit_1(pico_checkpoint: Path, tmp_path: Path, capfd) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "analysis"
    lines = [json.dumps({"question": f"How many are {n}?", "answer": str(n)}) + "\n" for n in range(10)]
    rows.write_text("".join(lines))
    pipeline.analyze(str(pico_checkpoint), out, Settings(calib=rows, threads=1))
    text, _ = export_both(pico_checkpoint, tmp_path)
    (found,) = evaluated(capfd, text, "--ref", out)
    assert found["quality"]["groups"]["all"]["samples"] == 2
    rows.write_text("".join(lines[1:]))
    line = refused(capfd, 1, text, "--ref", out)
    assert "have changed since" in line
    assert "analyze the model again" in line
