"""The quality of files as a stage: yardsticks from folders and 16-bit files, labelled data, and what is kept."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from luq_gguf import pipeline
from luq_gguf.bundle import bundle
from luq_gguf.calibration import load_calibration
from luq_gguf.demo import CHECKPOINT, FRESH_SEED
from luq_gguf.demo.scenes import draw_scene, make_scene, talk_about
from luq_gguf.errors import ArtifactError, CalibrationError, RequestError
from luq_gguf.job import REFERENCE
from luq_gguf.pipeline import Settings
from luq_gguf.quality import Evaluation, Evaluator, evaluate_files, stored_yardstick, work_folder, yardstick_of_model
from luq_gguf.reference import read_reference, write_reference
from luq_gguf.runtime import Runtime
from tests.exported import export_both
from tests.program import Run, listing, result_of


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return export_both(CHECKPOINT, tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def low(files: tuple[Path, Path], analyzed_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with all layers low."""
    folder = Path(shutil.copytree(analyzed_demo, tmp_path_factory.mktemp("low") / "analysis"))
    settings = Settings(low_layers=12, low_type="Q2_K")
    pipeline.plan_from_analysis(folder, settings)
    pipeline.quantize_file(files[0], folder / "plan.json", folder / "imatrix.gguf", folder / "low.gguf", threads=1)
    return folder / "low.gguf"


@pytest.fixture
def evaluator(files: tuple[Path, Path], tmp_path: Path) -> Evaluator:
    return Evaluator(files[1], tmp_path / "work", threads=1)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows as users label them: about images, some after other questions, and one without."""
    folder, rows = tmp_path_factory.mktemp("labelled"), []
    for number in range(6):
        scene = make_scene(FRESH_SEED + 80 + number)
        draw_scene(scene).save(folder / f"{number}.png")
        before, asked = talk_about(scene, turns=2)
        messages = [
            {"role": role, "content": text}
            for question in (before, asked)
            for role, text in (("user", question.text), ("assistant", question.answer))
        ]
        rows.append({"image": f"{number}.png", "messages": messages[2 * (number % 2) :]})
    rows.append({"question": "What is 1 plus 1?", "answer": "2"})
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_16_bit_file_says_what_its_analysis_says_and_a_small_one_less(
    files: tuple[Path, Path], analyzed_demo: Path, low: Path, evaluator: Evaluator
) -> None:
    full, small = (found.quality for found in evaluate_files([files[0], low], evaluator, reference=analyzed_demo))
    assert full is not None
    assert small is not None
    held_out = load_calibration("shapes", samples=60).held_out
    assert full.groups.keys() == {"all", "image", "question"}
    assert full.groups["image"].samples == sum(sample.picture is not None for sample in held_out)
    assert full.all.samples == len(held_out) == small.all.samples
    assert full.reference == str(analyzed_demo / REFERENCE)
    assert full.all.agreement > 0.97
    assert abs(full.all.divergence) < 2e-4
    assert small.all.divergence > 5e-4
    assert full.all.figures["reference_exact"] == small.all.figures["reference_exact"]
    assert full.all.figures["perplexity"].value != small.all.figures["perplexity"].value


def test_the_16_bit_file_takes_the_place_of_an_analysis(
    files: tuple[Path, Path], analyzed_demo: Path, low: Path, evaluator: Evaluator
) -> None:
    held_out = load_calibration("shapes", samples=60).held_out
    by_file = yardstick_of_model(files[0], held_out, evaluator)
    by_folder = stored_yardstick(analyzed_demo)
    assert by_file.reference.samples == by_folder.reference.samples
    assert by_file.reference.answers.tolist() == by_folder.reference.answers.tolist()
    assert by_file.reference.prompts.tolist() == by_folder.reference.prompts.tolist()
    found, wanted = (evaluator.quality(low, yardstick).all for yardstick in (by_file, by_folder))
    assert found.divergence == pytest.approx(wanted.divergence, rel=0.1)
    assert found.figures["perplexity"] == wanted.figures["perplexity"]
    itself = evaluator.quality(files[0], by_file).all
    assert (itself.agreement, itself.divergence) == (1, pytest.approx(0, abs=1e-6))


def test_a_bundle_brings_its_vision_part(
    files: tuple[Path, Path], analyzed_demo: Path, evaluator: Evaluator, tmp_path: Path
) -> None:
    bundle(*files, tmp_path / "both.gguf")
    (pair,) = evaluate_files([files[0]], evaluator, reference=analyzed_demo)
    (both,) = evaluate_files([tmp_path / "both.gguf"], replace(evaluator, mmproj=None), reference=analyzed_demo)
    assert both.quality == pair.quality
    assert both.size_bytes > pair.size_bytes


def test_images_are_encoded_once_for_all_files(
    files: tuple[Path, Path], analyzed_demo: Path, low: Path, evaluator: Evaluator
) -> None:
    (first,) = evaluate_files([files[0]], evaluator, reference=analyzed_demo)
    kept = listing(evaluator.work / "embeddings")
    assert first.quality is not None
    assert len(kept) == first.quality.groups["image"].samples
    again, _ = evaluate_files([files[0], low], evaluator, reference=analyzed_demo)
    assert listing(evaluator.work / "embeddings") == kept
    assert again == first


def test_a_conversion_says_of_itself_what_is_measured_again(converted: Run, tmp_path: Path) -> None:
    result = result_of(converted)
    folder = Path(result["model"]).parent
    evaluator = Evaluator(Path(result["mmproj"]), tmp_path, threads=1)
    (found,) = evaluate_files([Path(result["model"])], evaluator, reference=folder)
    assert found.quality is not None
    assert found.quality.model_dump()["groups"] == result["quality"]["groups"]
    assert json.loads((folder / "quality.json").read_text()) == result["quality"]


def test_images_have_the_size_that_they_had_in_the_analysis(pico_checkpoint: Path, tmp_path: Path) -> None:
    settings = Settings(calib="shapes", samples=10, threads=1, image_max_tokens=12)
    pipeline.analyze(str(pico_checkpoint), tmp_path / "analysis", settings)
    text, mmproj = export_both(pico_checkpoint, tmp_path)
    for tokens in (None, 64):
        evaluator = Evaluator(mmproj, tmp_path / "work", 1, tokens)
        (found,) = evaluate_files([text], evaluator, reference=tmp_path / "analysis")
        assert found.quality is not None
        assert found.quality.groups["image"].samples > 0


def test_without_its_vision_part_a_model_is_judged_by_texts(files: tuple[Path, Path], tmp_path: Path) -> None:
    blind = Evaluator(None, tmp_path, threads=1)
    yardstick = yardstick_of_model(files[0], load_calibration("shapes").held_out, blind)
    assert blind.quality(files[0], yardstick).groups.keys() == {"all", "question"}


def test_labelled_data_gives_accuracy_and_the_drop_against_16_bits(
    files: tuple[Path, Path], low: Path, evaluator: Evaluator, labelled: Path
) -> None:
    full, small = evaluate_files([files[0], low], evaluator, reference=files[0], data=labelled)
    assert full.benchmark is not None
    assert full.benchmark.figures.keys() == {"score", "image", "question"}
    assert (full.benchmark.questions, full.benchmark.figures["score"].value > 50) == (7, True)
    assert full.benchmark == full.reference_benchmark == small.reference_benchmark
    assert full.accuracy_drop == 0
    assert full.quality is not None
    assert (full.quality.all.samples, full.quality.all.agreement) == (7, 1)
    with Runtime(*files, threads=1) as runtime:
        said = {sample.id: runtime.answer(sample.question, sample.picture and sample.picture.read(), turns=sample.turns)
                for sample in load_calibration(labelled, held_out_share=0).samples}  # fmt: skip
    assert {each.id: each.said for each in full.benchmark.answers} == said
    (alone,) = evaluate_files([low], evaluator, data=labelled)
    assert alone == small.model_copy(update={"quality": None, "reference_benchmark": None})
    assert alone.accuracy_drop is None


def test_the_drop_is_a_share_of_the_16_bit_score(
    files: tuple[Path, Path], evaluator: Evaluator, labelled: Path
) -> None:
    (found,) = evaluate_files([files[0]], evaluator, reference=files[0], data=labelled)
    assert found.benchmark is not None
    score = found.benchmark.figures["score"]
    half = found.benchmark.model_copy(
        update={"figures": {"score": score.model_copy(update={"value": score.value / 2})}}
    )
    assert found.model_copy(update={"benchmark": half}).accuracy_drop == pytest.approx(0.5)


def test_answers_are_kept_for_as_long_as_nothing_changes(
    files: tuple[Path, Path], evaluator: Evaluator, labelled: Path, tmp_path: Path
) -> None:
    model, mmproj = (Path(shutil.copy(path, tmp_path)) for path in files)
    evaluator = replace(evaluator, mmproj=mmproj)

    def evaluate(**changes: Any) -> int:
        evaluate_files([model], replace(evaluator, **changes), data=labelled)
        return len(list(evaluator.work.glob("answers-*.jsonl")))

    assert [evaluate(), evaluate(), evaluate(threads=2)] == [1, 1, 1]
    os.utime(model, ns=(1, 1))
    assert evaluate() == 2
    os.utime(mmproj, ns=(1, 1))
    assert evaluate() == 3
    assert evaluate(image_tokens=8) == 4


def test_bad_rows_are_left_out_of_both_sides(pico_checkpoint: Path, tmp_path: Path) -> None:
    model, mmproj = export_both(pico_checkpoint, tmp_path)
    evaluator = Evaluator(mmproj, tmp_path / "work", 1, 12)  # it is judged by the images of the general set, too
    draw_scene(make_scene(3)).save(tmp_path / "good.png")
    rows = [f"{n}\t{name}.png\tcount/{n}.png\tIs it one?\tNo\tcount" for n, name in enumerate(("good", "gone"))]
    table = tmp_path / "MME.tsv"
    table.write_text("\n".join(["index\timage\timage_path\tquestion\tanswer\tcategory", *rows, ""]))
    with pytest.raises(CalibrationError, match=r"MME\.tsv:3: gone\.png does not exist"):
        evaluate_files([model], evaluator, reference=model, data=table, benchmark="mme")
    (found,) = evaluate_files(
        [model], evaluator, reference=model, data=table, benchmark="mme", skip_bad=True
    )  # fmt: skip
    for result in (found.benchmark, found.reference_benchmark):
        assert result is not None
        assert (result.questions, result.left_out) == (1, 1)


def test_rows_without_a_label_are_named_or_left_out(
    files: tuple[Path, Path], evaluator: Evaluator, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "What is 1 plus 1?", "answer": "2"}\n{"question": "Why?"}\n{"text": "red"}\n')
    with pytest.raises(CalibrationError, match=r"rows\.jsonl:[23] has no answer, 2 rows of "):
        evaluate_files([files[0]], evaluator, data=rows)
    (found,) = evaluate_files([files[0]], evaluator, data=rows, skip_bad=True)
    assert found.benchmark is not None
    assert found.benchmark.questions == 1
    rows.write_text('{"question": "Why?"}\n')
    with pytest.raises(CalibrationError, match="no question that can be asked"):
        evaluate_files([files[0]], evaluator, data=rows, skip_bad=True)


def test_without_a_yardstick_nothing_is_judged(files: tuple[Path, Path], evaluator: Evaluator) -> None:
    with pytest.raises(RequestError, match="nothing to judge by"):
        evaluate_files([files[0]], evaluator)
    with pytest.raises(RequestError, match="--benchmark mme has no data"):
        evaluate_files([files[0]], evaluator, benchmark="mme")
    assert not evaluator.work.exists()


def test_changed_samples_are_noticed(pico_checkpoint: Path, tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "analysis"
    lines = [json.dumps({"question": f"How many are {n}?", "answer": str(n)}) + "\n" for n in range(12)]
    rows.write_text("".join(lines))
    pipeline.analyze(str(pico_checkpoint), out, Settings(calib=rows, threads=1))
    yardstick = stored_yardstick(out)
    assert {sample.id for sample in yardstick.samples} == set(yardstick.reference.samples)
    rows.write_text("".join(reversed(lines)))
    assert stored_yardstick(out).samples == tuple(
        replace(sample, origin=stored.origin)
        for sample, stored in zip(yardstick.samples, stored_yardstick(out).samples, strict=True)
    )
    rows.write_text("".join([*lines[:-1], '{"question": "How many are 11?", "answer": "eleven"}\n']))
    with pytest.raises(ArtifactError, match="have changed since"):
        stored_yardstick(out)
    rows.unlink()
    with pytest.raises(CalibrationError, match=r"rows\.jsonl does not exist"):
        stored_yardstick(out)


@pytest.mark.parametrize("recipe", [None, "shapes", {}, {"source": "shapes"}, {"source": "shapes", "sample": 3},
                                    {"source": "shapes", "samples": "all"}], ids=str)  # fmt: skip
def test_a_reference_that_does_not_say_what_it_is_of_is_refused(
    analyzed_demo: Path, tmp_path: Path, recipe: Any
) -> None:
    stored = read_reference(analyzed_demo / REFERENCE)
    write_reference(tmp_path / REFERENCE, replace(stored, context=stored.context | {"recipe": recipe}))
    with pytest.raises(ArtifactError, match=REFERENCE) as caught:
        stored_yardstick(tmp_path)
    assert "analyze the model again" in str(caught.value)


def test_a_folder_without_a_reference_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=f"{tmp_path} holds no {REFERENCE}"):
        stored_yardstick(tmp_path)


def test_what_is_kept_lies_beside_an_analysis_or_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").touch()
    assert work_folder(tmp_path) == tmp_path / ".work"
    for reference in (None, tmp_path / "model.gguf"):
        assert work_folder(reference) == tmp_path / "cache" / "luq-gguf" / "evaluations"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert work_folder(None).is_relative_to(Path.home() / ".cache")


def test_no_drop_is_known_without_a_score() -> None:
    assert Evaluation(model="m", size_bytes=1).accuracy_drop is None
