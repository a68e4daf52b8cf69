"""Plans by measured and predicted damage, and by a measured drop: made, checked, and made again."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from luq_gguf import pipeline
from luq_gguf.artifacts import Plan, read_record
from luq_gguf.audit import audit_folder
from luq_gguf.errors import ArtifactError, BudgetError, RequestError
from luq_gguf.evidence import EVIDENCE, Evidence, group_of
from luq_gguf.job import QUALITY, Settings
from luq_gguf.judging import Quality
from luq_gguf.pipeline import Conversion, convert
from luq_gguf.probing import tokens_for
from luq_gguf.quality import Evaluator
from tests import pico_text
from tests.pico_shapes import Decoder
from tests.program import listing

SETTINGS = Settings(calib="shapes", low_type="IQ1_M", samples=30, threads=1, keep_parts=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work that the conversions of this file share."""
    return tmp_path_factory.mktemp("policies")


def made(pico: Path, folder: Path, name: str, **changes) -> Conversion:
    return convert(str(pico), folder / name, replace(SETTINGS, work=folder / "work", **changes))


@pytest.fixture(scope="module")
def by_entropy(pico_checkpoint: Path, folder: Path) -> Conversion:
    return made(pico_checkpoint, folder, "entropy", low_layers=2)


@pytest.fixture(scope="module")
def mixed(pico_checkpoint: Path, folder: Path) -> Conversion:
    return made(pico_checkpoint, folder, "mix", low_layers=2, order="mix")


@pytest.fixture(scope="module")
def by_damage(pico_checkpoint: Path, folder: Path) -> Conversion:
    return made(pico_checkpoint, folder, "damage", low_layers=1, order="damage")


def test_a_conversion_ends_with_what_was_measured(by_entropy: Conversion) -> None:
    quality = by_entropy.quality
    assert quality is not None
    assert read_record(by_entropy.model.parent / QUALITY, Quality) == quality
    assert quality.all.samples == by_entropy.scores.held_out
    figures = quality.all.figures
    assert 0 <= figures["agreement"].low <= figures["agreement"].value <= figures["agreement"].high <= 1
    assert quality.all.divergence > 0
    assert by_entropy.as_json()["quality"]["groups"]["all"]["tokens"] == quality.all.tokens


def test_the_measured_quality_is_that_of_the_file(by_entropy: Conversion) -> None:
    """A separate evaluation of the finished file against the folder's reference says the same."""
    from luq_gguf.quality import stored_yardstick

    evaluator = Evaluator(by_entropy.mmproj, by_entropy.model.parent / "again", threads=1)
    again = evaluator.quality(by_entropy.model, stored_yardstick(by_entropy.model.parent))
    assert by_entropy.quality is not None
    assert again.all.divergence == pytest.approx(by_entropy.quality.all.divergence, rel=1e-6)
    assert again.groups.keys() == by_entropy.quality.groups.keys()


def test_without_evaluation_nothing_is_measured(pico_checkpoint: Path, folder: Path) -> None:
    result = made(pico_checkpoint, folder, "unmeasured", low_layers=2, evaluate=False)
    assert result.quality is None
    assert result.as_json()["quality"] is None
    assert not (result.model.parent / QUALITY).exists()


def test_a_mixture_takes_no_more_bytes_than_the_plan_by_entropy(mixed: Conversion, by_entropy: Conversion) -> None:
    assert mixed.plan.size_bytes == mixed.model.stat().st_size <= by_entropy.plan.size_bytes
    assert mixed.plan.size_bytes > 0.9 * by_entropy.plan.size_bytes
    assert mixed.model.name.endswith("of3-MIX.gguf")
    assert len({kind for name, kind in mixed.plan.types.items() if name.startswith("blk.")}) > 2
    evidence = read_record(mixed.model.parent / EVIDENCE, Evidence)
    assert evidence.probes > 6
    assert min(evidence.coefficients.values()) >= 0


def test_folders_of_measured_plans_are_what_their_manifests_say(mixed: Conversion, by_damage: Conversion) -> None:
    for result in (mixed, by_damage):
        assert audit_folder(result.model.parent) == []


def test_a_second_run_does_nothing(mixed: Conversion, pico_checkpoint: Path, folder: Path) -> None:
    before = listing(mixed.model.parent)
    again = made(pico_checkpoint, folder, "mix", low_layers=2, order="mix")
    assert listing(mixed.model.parent) == before
    assert (again.plan, again.quality, again.seconds) == (mixed.plan, mixed.quality, {})


def test_the_order_by_damage_begins_with_the_layer_that_was_measured_to_do_least(
    by_damage: Conversion, pico_checkpoint: Path, folder: Path
) -> None:
    evidence = read_record(by_damage.model.parent / EVIDENCE, Evidence)
    assert by_damage.plan.order == evidence.damage_order
    assert sorted(evidence.damage_order) == [0, 1, 2]
    divergences = {}
    for layer in range(3):
        order = [layer, *(other for other in range(3) if other != layer)]
        alone = made_with_order(pico_checkpoint, folder, order)
        divergences[layer] = alone
    assert evidence.damage_order[0] == min(divergences, key=lambda layer: divergences[layer])


def made_with_order(pico: Path, folder: Path, order: list[int]) -> float:
    """The divergence of the file whose first layer of an order is low, made and judged apart from conversions."""
    from luq_gguf.analysis import read_calibration
    from luq_gguf.groundwork import prepare
    from luq_gguf.job import open_job
    from luq_gguf.planning import Budget
    from luq_gguf.progress import silent

    settings = replace(SETTINGS, work=folder / "work")
    job = open_job(str(pico), folder / "single", settings, silent)
    with job.working(), prepare(job, read_calibration(settings, silent)) as ground:
        trials = ground.open_trials()
        assert trials is not None
        layout = ground.lay_out(settings)
        plan = layout.plan(order, "test", Budget(1), strict=False)
        return trials.brief(tokens_for(layout.weights)).quality(plan).all.divergence


def test_what_is_measured_cannot_be_planned_without_measuring(mixed: Conversion, by_entropy: Conversion) -> None:
    entropy, mixture = (result.model.parent for result in (by_entropy, mixed))
    for order in ("mix", "damage"):
        with pytest.raises(RequestError, match="measured"):
            pipeline.plan_from_analysis(entropy, replace(SETTINGS, order=order))
    with pytest.raises(RequestError, match="--max-drop"):
        pipeline.plan_from_analysis(entropy, replace(SETTINGS, max_drop=0.1))
    plan, _ = pipeline.plan_from_analysis(mixture, replace(SETTINGS, order="mix", max_size=mixed.plan.size_bytes))
    assert plan == mixed.plan


def test_evidence_of_another_model_is_refused(mixed: Conversion, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(mixed.model.parent, tmp_path / "copy"))
    evidence = read_record(folder / EVIDENCE, Evidence)
    asked = replace(SETTINGS, order="mix", max_size=mixed.plan.size_bytes)
    for changes in ({"checkpoint": "another"}, {"factors": (1.0,)}):
        (folder / EVIDENCE).write_text(evidence.model_copy(update=changes).model_dump_json())
        with pytest.raises(ArtifactError, match=r"is of another model than scores\.json; convert the model again"):
            pipeline.plan_from_analysis(folder, asked)
    (folder / EVIDENCE).write_text(evidence.model_copy(update={"coefficients": {"offset": 1.0}}).model_dump_json())
    with pytest.raises(ArtifactError, match="its coefficients are of other groups"):
        pipeline.plan_from_analysis(folder, asked)


def test_a_drop_is_that_of_the_refined_file(pico_checkpoint: Path, folder: Path) -> None:
    """With --sequential what the search measures is what is written."""
    result = made(pico_checkpoint, folder, "refined", max_drop=0.5, sequential=True)
    assert result.quality is not None
    assert result.quality.drop <= 0.5
    assert "judge" in result.seconds
    judged = [read_record(path, Quality) for path in (folder / "work" / "judged").glob("*.json")]
    assert result.quality in judged


def test_a_drop_is_kept_by_the_file_that_was_measured(pico_checkpoint: Path, folder: Path) -> None:
    result = made(pico_checkpoint, folder, "drop", max_drop=0.5)
    assert result.quality is not None
    assert result.quality.drop <= 0.5
    assert audit_folder(result.model.parent) == []
    strict = made(pico_checkpoint, folder, "drop", max_drop=max(0.0, result.quality.drop))
    assert strict.plan.size_bytes >= result.plan.size_bytes


def test_a_drop_and_a_size_hold_together_or_are_refused(pico_checkpoint: Path, folder: Path) -> None:
    largest = made(pico_checkpoint, folder, "both", low_layers=0).plan.size_bytes
    result = made(pico_checkpoint, folder, "both", max_drop=0.99, max_size=largest - 1)
    assert result.plan.size_bytes < largest
    with pytest.raises(BudgetError, match="no file of at most 1,000 bytes can be made"):
        made(pico_checkpoint, folder, "both", max_drop=0.99, max_size=1000)


def test_a_drop_that_no_file_keeps_names_the_best(pico_checkpoint: Path, folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(Quality, "drop", property(lambda quality: 0.25))
    with pytest.raises(BudgetError, match=r"no plan was measured to drop by 10\.0% or less; the best drops by 25\.0%"):
        made(pico_checkpoint, folder, "never", max_drop=0.1)


def test_without_answers_nothing_is_measured(pico_checkpoint: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(f'{{"text": "Plain words number {number} to read."}}\n' for number in range(12)))
    settings = replace(SETTINGS, calib=texts, samples=None, low_layers=1)
    result = convert(str(pico_checkpoint), tmp_path / "out", settings)
    assert result.quality is None
    for changes in ({"max_drop": 0.1}, {"order": "mix"}, {"order": "damage"}):
        with pytest.raises(RequestError, match="no sample was held out"):
            convert(str(pico_checkpoint), tmp_path / "out", replace(settings, **changes))


def test_rows_that_no_asked_type_fits_are_mixed_of_what_they_get_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their errors are measured in llama.cpp's substitutes."""
    monkeypatch.setattr(pico_text, "QWEN25", Decoder(hidden=192, ffn=288, heads=3, kv_heads=1, qkv_bias=True))
    narrow = pico_text.build_qwen25(tmp_path / "narrow")
    sizes = {"hidden_size": 192, "intermediate_size": 288, "num_attention_heads": 3, "num_key_value_heads": 1}
    config = json.loads((narrow / "config.json").read_text())
    (narrow / "config.json").write_text(json.dumps(config | sizes))
    result = made(narrow, tmp_path, "out", low_layers=2, order="mix")
    kinds = {kind for name, kind in result.plan.types.items() if group_of(name)}
    assert kinds <= {"IQ4_NL", "Q4_0", "Q5_0", "Q5_1", "Q8_0"}
    evidence = read_record(result.model.parent / EVIDENCE, Evidence)
    assert {kind for known in evidence.errors.values() for kind in known} >= kinds - {"Q8_0"}
    assert audit_folder(result.model.parent) == []


def test_the_plan_record_of_a_mixture_is_read_again(mixed: Conversion) -> None:
    assert read_record(mixed.plan_path, Plan) == mixed.plan
