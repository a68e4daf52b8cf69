"""report.html on real conversions: every number is that of a record, nothing is loaded, hostile texts stay texts."""

from __future__ import annotations

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from luq_gguf.artifacts import read_record, sha256_of, write_record
from luq_gguf.audit import audit_folder
from luq_gguf.errors import ArtifactError, LuqError
from luq_gguf.frontier import FRONTIER, Frontier, FrontierPoint
from luq_gguf.job import DOCUMENTS, REPORT
from luq_gguf.manifest import Manifest
from luq_gguf.report import try_report, write_report
from luq_gguf.report.folder import read_finished
from luq_gguf.report.page import make_page
from luq_gguf.showcase import SHOWCASE, Showcase
from tests.program import QUICK, Run, dead_process, listing, result_of, run_program
from tests.test_audit import admit, edit_json

HOSTILE = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>&{{7*7}}"


class Page(HTMLParser):
    """Numbers with their places in the records, every attribute, and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.numbers: list[tuple[str, str]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in found.items()]
        if found.get("data-from"):
            self.numbers.append((found["data-from"], found.get("value", found.get("data-value", ""))))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def at(folder: Path, pointer: str) -> Any:
    """The value at "<file>#<JSON pointer>", read from the file anew."""
    name, _, path = pointer.partition("#")
    value = json.loads((folder / name).read_text())
    for step in path.split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def folder_of(done: Run) -> Path:
    return Path(result_of(done)["model"]).parent


def assert_is_loaded_alone(text: str) -> None:
    """Nothing but data of its own stands where a browser loads from; less than 2 MB."""
    page = Page(text)
    assert len(text.encode()) < 2_000_000
    assert not {"link", "iframe", "object", "embed", "base", "form", "audio", "video"} & set(page.tags)
    loaded = [value for _, name, value in page.attributes if name in ("src", "href", "xlink:href", "srcset", "action")]
    assert all(value.startswith("data:image/jpeg;base64,") for value in loaded)
    assert not re.search(r"url\(|@import", text)
    assert page.tags.count("script") == 1


def test_every_number_is_that_of_a_record(converted: Run) -> None:
    folder = folder_of(converted)
    page = Page((folder / REPORT).read_text())
    assert len(page.numbers) > 80
    for pointer, shown in page.numbers:
        assert shown == str(at(folder, pointer)), pointer
    pointers = {pointer for pointer, _ in page.numbers}
    model = Path(result_of(converted)["model"]).name
    assert {
        f"manifest.json#/files/{model}/bytes", f"manifest.json#/files/{model}/sha256", "plan.json#/size_bytes",
        "plan.json#/high_size_bytes", "plan.json#/f16_size_bytes", "plan.json#/bits_per_weight",
        "quality.json#/groups/all/figures/agreement/value", "quality.json#/groups/image/figures/divergence/low",
        "scores.json#/entropy/output_multimodal/2/mean", "scores.json#/entropy/output_text/0/mean",
        "manifest.json#/versions/llama-cpp-python", "manifest.json#/checkpoint",
    } <= pointers  # fmt: skip


def test_it_shows_the_types_of_every_tensor_and_the_held_out_answers(converted: Run) -> None:
    folder = folder_of(converted)
    page = Page((folder / REPORT).read_text())
    tips = [value for _, name, value in page.attributes if name == "data-tip"]
    found = read_finished(folder)
    for tensor in found.matrices:
        assert any(tip.startswith(f"{tensor.name}: {tensor.type.name}, {tensor.nbytes:,} bytes") for tip in tips)
    showcase = read_record(folder / SHOWCASE, Showcase)
    assert showcase.answers
    text = "".join(page.texts)
    for shown in showcase.answers:
        assert shown.question in text
        assert "".join(place.file for place in shown.said.places) in text
    images = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert len(images) == len(showcase.thumbnails) + sum(shown.picture is not None for shown in showcase.answers)
    assert "luq-gguf convert Pico-VL-Instruct --out pico-vl-instruct --low-layers 1 --low-type Q2_K" in text


def test_what_a_killed_report_left_is_cleared_away(copy_of_converted: Path) -> None:
    left, others = (copy_of_converted / f".plot-layers.png.1.{pid}.partial" for pid in (dead_process(), os.getpid()))
    for path in (left, others):
        path.write_bytes(b"half")
    write_report(copy_of_converted)
    assert not left.exists()
    assert others.exists()


def test_what_is_shown_of_answers_is_what_was_judged(converted: Run) -> None:
    """All answers are few enough here that the shown ones and the figures can be held against each other."""
    folder = folder_of(converted)
    found = read_finished(folder)
    assert found.quality is not None
    assert found.showcase is not None
    said = [shown.said for shown in found.showcase.answers]
    assert all(each.same == sum(place.same for place in each.places) for each in said)
    assert all(each.tokens == len(each.places) for each in said)
    group = found.quality.all
    assert len(said) == group.samples
    assert sum(each.tokens for each in said) == group.tokens
    assert sum(each.same for each in said) / group.tokens == pytest.approx(group.agreement)
    for shown in found.showcase.answers:
        assert "".join(place.answer for place in shown.said.places).startswith(shown.answer)


def test_it_loads_nothing_and_stays_small(converted: Run) -> None:
    assert_is_loaded_alone((folder_of(converted) / REPORT).read_text())


def test_convert_names_it_and_the_manifest_holds_it(converted: Run) -> None:
    folder = folder_of(converted)
    assert result_of(converted)["report"] == str(folder / REPORT)
    manifest = read_record(folder / "manifest.json", Manifest)
    made = {name for name in DOCUMENTS if (folder / name).exists()}
    assert made == {"report.html", "README.md", "Modelfile", "plot-layers.png"}
    for name in made:
        assert manifest.files[name].sha256 == sha256_of(folder / name)
    assert audit_folder(folder) == []


def test_it_is_made_anew_from_the_folder_alone(copy_of_converted: Path, tmp_path: Path) -> None:
    before = {
        name: (copy_of_converted / name).read_bytes() for name in DOCUMENTS if (copy_of_converted / name).exists()
    }
    moved = Path(shutil.move(copy_of_converted, tmp_path / "elsewhere"))
    shutil.rmtree(moved / ".work")
    for name in before:
        (moved / name).unlink()
    done = run_program("report", moved, "--json")
    assert done.returncode == 0, done.stderr
    assert {name: (moved / name).read_bytes() for name in before} == before
    assert json.loads(done.stdout)["report"] == str(moved / REPORT)
    assert audit_folder(moved) == []


def test_a_second_conversion_makes_only_a_missing_report(copy_of_converted: Path, pico_checkpoint: Path) -> None:
    arguments = ("convert", pico_checkpoint, "--out", copy_of_converted, "--low-layers", 1, *QUICK, "--json")
    (copy_of_converted / "README.md").write_text("my own words")
    (copy_of_converted / REPORT).unlink()
    before = listing(copy_of_converted)
    assert result_of(run_program(*arguments))["report"] == str(copy_of_converted / REPORT)
    changed = {name for name, state in listing(copy_of_converted).items() if before.get(name) != state}
    assert changed - {".work/lock"} == {"report.html", "manifest.json", "Modelfile", "plot-layers.png"}
    again = listing(copy_of_converted)
    assert result_of(run_program(*arguments))["report"] == str(copy_of_converted / REPORT)
    assert listing(copy_of_converted) == again


def test_without_an_evaluation_it_says_so(pico_checkpoint: Path, tmp_path: Path) -> None:
    done = run_program("convert", pico_checkpoint, "--out", tmp_path, "--low-layers", 1, *QUICK, "--no-eval", "--json")
    text = Path(result_of(done)["report"]).read_text()
    assert "Quality was not measured" in text
    assert "quality.json" not in text
    assert "--no-eval" in text
    assert "Quality was not measured" in (tmp_path / "README.md").read_text()


def test_a_sweep_stands_on_it_with_this_file(copy_of_converted: Path) -> None:
    found = read_finished(copy_of_converted)
    assert found.quality is not None
    points = [
        FrontierPoint(
            preset=preset, order_name="entropy", low_type="Q2_K", high_type=f"Q{bits}_K", low_layers=(), layers=3,
            size_bytes=bits * 10**6, bits_per_weight=bits, quality=found.quality,
        )
        for bits, preset in ((2, True), (4, True), (3, False))
    ]  # fmt: skip
    frontier = Frontier(model="m", checkpoint=found.plan.checkpoint, points=tuple(points))
    write_record(copy_of_converted / FRONTIER, frontier)
    made = write_report(copy_of_converted)
    page = Page(made.page.read_text())
    assert "frontier.json#/points/2/quality/groups/all/figures/divergence/value" in dict(page.numbers)
    assert [path.name for path in made.plots] == ["plot-layers.png", "plot-frontier.png"]
    write_record(copy_of_converted / FRONTIER, frontier.model_copy(update={"checkpoint": "of another model"}))
    assert write_report(copy_of_converted).plots == made.plots[:1]
    assert not (copy_of_converted / "plot-frontier.png").exists()


def test_hostile_texts_stay_texts(copy_of_converted: Path) -> None:
    folder = copy_of_converted
    showcase = json.loads((folder / SHOWCASE).read_text())
    showcase["calibration"] = HOSTILE
    for shown in showcase["answers"]:
        shown["question"] = HOSTILE
        for place in shown["said"]["places"]:
            place |= {"answer": HOSTILE, "reference": HOSTILE, "file": HOSTILE, "same": False}
    (folder / SHOWCASE).write_text(json.dumps(showcase))
    edit_json(folder / "scores.json", {"warnings": [HOSTILE], "compute_type": HOSTILE})
    edit_json(
        folder / "plan.json", {"notes": [HOSTILE], "order_name": HOSTILE, "low_type": HOSTILE, "high_type": HOSTILE}
    )
    for name in (SHOWCASE, "scores.json", "plan.json"):
        admit(folder, name)
    edit_json(
        folder / "manifest.json",
        {"source": HOSTILE, "versions": {HOSTILE: HOSTILE}, "checkpoint_files": {HOSTILE: "0"}},
    )
    text = write_report(folder).page.read_text()
    assert_is_loaded_alone(text)
    page = Page(text)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "49" not in "".join(part for part in page.texts if "alert(1)" in part)
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    assert script is not None
    assert "alert" not in script[1]


def test_many_and_large_pictures_do_not_make_it_large(copy_of_converted: Path) -> None:
    showcase = read_record(copy_of_converted / SHOWCASE, Showcase)
    large = showcase.thumbnails[0].model_copy(update={"jpeg": "A" * 100_000})
    write_record(copy_of_converted / SHOWCASE, showcase.model_copy(update={"thumbnails": (large,) * 24}))
    admit(copy_of_converted, SHOWCASE)
    text = make_page(read_finished(copy_of_converted))
    assert_is_loaded_alone(text)
    assert "The pictures are left out" in text


@pytest.mark.parametrize("name", ["plan.json", "scores.json", "quality.json", "imatrix.gguf", "showcase.json"])
def test_records_that_are_not_as_they_were_left_are_one_line(copy_of_converted: Path, name: str) -> None:
    path = copy_of_converted / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name} has changed since the conversion; convert the model again"):
        write_report(copy_of_converted)
    path.unlink()
    done = run_program("report", copy_of_converted)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert f"{name} is missing" in done.stderr


@pytest.mark.parametrize(
    "change",
    [{"files": {}}, {"layer_bytes": [1]}, {"name": "x; rm -rf"}, {"files": {"a\nFROM b-LUQ-.gguf": {}}},
     {"format": "x"}, {"files": {"x-LUQ-y.gguf": {"bytes": 1, "sha256": "", "changed_ns": 0}}}],
)  # fmt: skip
def test_a_manifest_that_cannot_be_is_one_error(copy_of_converted: Path, change: dict[str, Any]) -> None:
    edit_json(copy_of_converted / "manifest.json", change)
    with pytest.raises(LuqError, match=r"manifest\.json|missing|plan\.json"):
        write_report(copy_of_converted)


def test_a_folder_without_a_conversion_is_one_line(tmp_path: Path) -> None:
    done = run_program("report", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"luq-gguf: {tmp_path} holds no manifest.json: no conversion was finished there; "
        "give the folder of a finished `luq-gguf convert`\n"
    )


def test_a_report_that_fails_does_not_fail_the_conversion(
    copy_of_converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise OSError("no fonts\nfound")

    monkeypatch.setattr("luq_gguf.report.plots.draw_plots", fail)
    (copy_of_converted / REPORT).unlink()
    path, notes = try_report(copy_of_converted)
    assert path is None
    why = "the files are finished, but there is no report: OSError: no fonts found"
    assert notes == (f"{why}; try `luq-gguf report {copy_of_converted}`",)
    assert not (copy_of_converted / REPORT).exists()
