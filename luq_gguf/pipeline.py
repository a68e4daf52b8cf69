"""The stages in order; a stage whose inputs have not changed is not run again.

Takes a model and settings, leaves the results in one folder. What later runs can reuse (the analysis,
quantized layers) lies in a work folder under names made of its inputs, so that another budget costs no
more than an assembly. Knows no terminal: progress goes to a callback.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType

from luq_gguf.analysis import AnalysisFiles, read_calibration, run_analysis
from luq_gguf.artifacts import (
    LayerScores,
    Plan,
    atomic_path,
    lock_folder,
    read_record,
    scratch_folder,
    sha256_of,
    write_record,
    write_text,
)
from luq_gguf.bundle import bundle
from luq_gguf.checkpoint import resolve_model
from luq_gguf.choice import Choice, choose_plan, plan_again, speed_rule
from luq_gguf.errors import ArtifactError, CalibrationError, RequestError, RunError
from luq_gguf.evidence import EVIDENCE, Evidence
from luq_gguf.export import export_text, export_vision
from luq_gguf.frontier import FrontierPoint, better_preset
from luq_gguf.groundwork import Groundwork, check_analysis, prepare, write_importance
from luq_gguf.growing import drop_growing
from luq_gguf.imatrix import (
    check_importance,
    floor_importance,
    floored_channels,
    read_brought,
    write_imatrix,
)
from luq_gguf.importance import ImatrixNote, ImportanceMatrix, read_importance
from luq_gguf.job import (
    HEADER,
    IMATRIX,
    MANIFEST,
    MODEL,
    PLAN,
    QUALITY,
    REFERENCE,
    REPORT,
    SCORES,
    SUMS,
    TENSOR_TYPES,
    WORK,
    Job,
    Settings,
    hub_source,
    key_of,
    model_name,
    open_job,
)
from luq_gguf.judging import Quality
from luq_gguf.layout import keep_header, layout_of_config, write_header
from luq_gguf.making import Made, Maker, make_to_speed
from luq_gguf.manifest import Manifest, find_manifest, hash_headers, record_files, versions, write_manifest
from luq_gguf.planning import MEASURED, MIX, Budget, choose_order, tensor_types_text, weights_to_quantize
from luq_gguf.probing import gather_evidence
from luq_gguf.progress import Progress, silent
from luq_gguf.quantize import quantize_gguf
from luq_gguf.report import try_report
from luq_gguf.result_names import ModelFiles, bundle_name
from luq_gguf.samples import CalibrationSet, without_pictures
from luq_gguf.sequential import refine
from luq_gguf.showcase import SHOWCASE, Answers, make_showcase
from luq_gguf.speed_budget import Forecast, SpeedRule
from luq_gguf.speed_record import SPEED, SpeedRecord
from luq_gguf.trials import Trials
from luq_gguf.verify import require_plan_of

__all__ = [
    "IMATRIX", "Conversion", "Settings", "SizeTable", "analyze", "convert", "export_model", "floored_channels",
    "is_analysis", "plan_from_analysis", "quantize_file", "remix_importance", "size_table_of_model",
]  # fmt: skip

FOR_LATER = (TENSOR_TYPES, SUMS, REFERENCE, HEADER, MODEL, QUALITY, EVIDENCE, SPEED, SHOWCASE)
"""What a conversion leaves beside its results for planning, mixing and judging again."""


@dataclass(frozen=True)
class Conversion:
    """What `convert` made: where it lies, by which plan, and how long each stage took.

    A model that takes no images has no `mmproj`.
    """

    model: Path
    mmproj: Path | None
    bundle: Path | None
    plan_path: Path
    scores_path: Path
    imatrix_path: Path
    plan: Plan
    scores: LayerScores
    layer_bytes: tuple[int, ...]
    seconds: dict[str, float]
    mmproj_layout: str = ""
    """How the vision part is laid out, where there is a choice."""
    forecast: Forecast | None = None
    """The predicted speed, where this CPU was profiled."""
    tps: float | None = None
    """Measured tokens a second, where a speed was asked for."""
    quality: Quality | None = None
    """What the file says against the 16-bit model, measured on the held-out samples."""
    unmeasured: str = ""
    """Why there is none."""
    better: FrontierPoint | None = None
    """A preset of llama.cpp's of no more bytes that a sweep into the same folder found to diverge less."""
    report: Path | None = None
    report_notes: tuple[str, ...] = ()
    """What to mind about the report, or why there is none."""

    @property
    def floored(self) -> tuple[int, int]:
        """How many channels of the importance matrix stand at the floor of their row, and how many there are."""
        return floored_channels(self.imatrix_path)

    def files(self) -> list[Path]:
        """Every result, the model first."""
        vision = [path for path in (self.mmproj, self.bundle) if path]
        return [self.model, *vision, self.plan_path, self.scores_path, self.imatrix_path]

    def _repr_html_(self) -> str:
        from luq_gguf.notebook import conversion_html

        return conversion_html(self)

    def as_json(self) -> dict[str, Any]:
        """The object that `convert --json` prints."""
        rows = self.scores.entropy.get("output_multimodal") or self.scores.entropy["output_text"]
        return {
            "model": str(self.model),
            "mmproj": str(self.mmproj) if self.mmproj else None,
            "mmproj_layout": self.mmproj_layout or None,
            "predicted_tps": self.forecast.plan.generate if self.forecast else None,
            "high_predicted_tps": self.forecast.high.generate if self.forecast else None,
            "measured_tps": self.tps,
            "quality": self.quality.model_dump() if self.quality else None,
            "better_preset": self.better.name if self.better else None,
            "bundle": str(self.bundle) if self.bundle else None,
            "size_bytes": self.plan.size_bytes,
            "bits_per_weight": self.plan.bits_per_weight,
            "low_layers": list(self.plan.low_layers),
            "order": list(self.plan.order),
            "entropy": [row.mean for row in rows],
            "types": self.plan.types,
            "plan": str(self.plan_path),
            "scores": str(self.scores_path),
            "imatrix": str(self.imatrix_path),
            "floored_channels": self.floored[0],
            "report": str(self.report) if self.report else None,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Export:
    """What `export_model` wrote; a model that takes no images has no `mmproj`."""

    text: Path
    mmproj: Path | None
    mmproj_layout: str

    @property
    def files(self) -> list[Path]:
        """Every file, the text model first."""
        return [self.text, *([self.mmproj] if self.mmproj else [])]


@dataclass(frozen=True)
class SizeTable:
    """Bytes of a model's text GGUF for 0, 1, ... all layers low, and of its 16-bit form."""

    model: str
    layers: int
    low_type: str
    high_type: str
    sizes: tuple[int, ...]
    f16_size_bytes: int
    notes: tuple[str, ...]
    tps: tuple[float, ...] = ()
    """Predicted tokens a second for as many low layers, where this CPU was profiled."""

    def as_json(self) -> dict[str, Any]:
        """The table as one JSON object."""
        return asdict(self)

    def _repr_html_(self) -> str:
        from luq_gguf.notebook import sizes_html

        return sizes_html(self)


def convert(model: str, out: Path, settings: Settings, progress: Progress = silent) -> Conversion:
    """The whole path: text GGUF, mmproj and their records in `out`, verified.

    A second run with the same inputs finds its results by the manifest and does nothing. Raises LuqError
    with what is wrong before hours are spent, wherever it can be known before.
    """
    job = open_job(model, out, settings, progress)
    brought = read_brought(settings.imatrix)
    calibration = read_calibration(settings, progress)
    rule = speed_rule(settings, progress)
    speed = rule.profile.model_dump_json() if rule and settings.by_speed else ""
    request = key_of(versions(), job.checkpoint.fingerprint, calibration.digest, plain_settings(settings), speed)
    finished = find_manifest(out, request)
    if finished is not None:
        result = _finished_conversion(job, finished)
        return result if result.report is not None else _reported(result)
    with job.working():
        job.remember_parts()
        result = _convert(job, calibration, brought, rule)
        finish(job, request, calibration, result)
        if not job.keeps_parts(result.plan.high_size_bytes):
            shutil.rmtree(job.parts, ignore_errors=True)
        drop_growing(out)
    return _reported(result)


def _reported(result: Conversion) -> Conversion:
    """The conversion with its report; what goes wrong with that does not fail what was made."""
    path, notes = try_report(result.model.parent)
    return replace(result, report=path, report_notes=notes)


def _convert(
    job: Job, calibration: CalibrationSet, brought: ImportanceMatrix | None, rule: SpeedRule | None
) -> Conversion:
    settings = job.settings
    with prepare(job, calibration, brought) as ground:
        measures = settings.evaluate or settings.max_drop is not None or settings.order in MEASURED
        trials = ground.open_trials() if measures else None
        if settings.max_drop is not None and trials is None:
            raise RequestError("no sample was held out to measure the drop on", hint="calibrate with answered samples")
        evidence = gather_evidence(ground, trials)

        def choose(limit: SpeedRule | None) -> Choice:
            drop = (lambda plan: trials.of(_maker_of(ground, plan)).quality(plan).drop) if trials else None
            scores = ground.analysis.scores
            return choose_plan(settings, scores, ground.lay_out, limit, evidence=evidence, drop=drop)

        made = make_to_speed(job, choose, lambda plan: _maker_of(ground, plan).make_result(plan), rule)
        maker = _maker_of(ground, made.choice.plan)
        judged = _judge(made, trials.of(maker) if trials and settings.evaluate else None)
        if maker.imatrix != job.work / IMATRIX:
            _copy(maker.imatrix, job.work / IMATRIX)
        _keep_evidence(job, evidence)
        answers = trials.of(maker).answers(made.choice.plan) if trials and not isinstance(judged, str) else None
        _keep_for_report(job, made, calibration, answers)
        keep_header(job, ground.maker.header, ground.dataset)
        ground.leave_vision()
    return leave_records(job, made, ground.analysis, judged)


def _maker_of(ground: Groundwork, plan: Plan) -> Maker:
    """What makes a plan's file: with the importance matrix of the analysis, or one along the plan's own layers."""
    return refine(ground, plan) if ground.maker.job.settings.sequential else ground.maker


def _judge(made: Made, trials: Trials | None) -> Quality | str:
    """The quality of what was made, or why it was not measured: hours of work are not lost to that."""
    if trials is None:
        return "--no-eval, or no sample with an answer was held out"
    try:
        return trials.judge(made.choice.plan, made.target)
    except (ArtifactError, CalibrationError, RunError) as error:
        return str(error)


def _keep_evidence(job: Job, evidence: Evidence | None) -> None:
    """What the plan was made from beside the scores, in the output folder, so that it can be made again."""
    (job.out / EVIDENCE).unlink(missing_ok=True)
    if evidence is not None:
        write_record(job.out / EVIDENCE, evidence)


def _keep_for_report(job: Job, made: Made, calibration: CalibrationSet, answers: Answers | None) -> None:
    """What only this run knows and a report shows: the predicted speed, and the samples in short."""
    (job.out / SPEED).unlink(missing_ok=True)
    if made.choice.forecast is not None:
        write_record(job.out / SPEED, SpeedRecord.of(made.choice.forecast, made.tps))
    seen = calibration if job.family.vision is not None else without_pictures(calibration)
    write_record(job.out / SHOWCASE, make_showcase(seen, answers))


def analyze(model: str, out: Path, settings: Settings, progress: Progress = silent) -> LayerScores:
    """Scores, sums, importance matrix, reference and header of a model in `out`, for `plan` and `imatrix`."""
    job = open_job(model, out, settings, progress)
    calibration = read_calibration(settings, progress)
    with job.working():
        analysis = run_analysis(job, calibration, check_analysis(job, calibration))
        for name in (SCORES, SUMS, REFERENCE):
            _copy(analysis.folder / name, out / name)
        write_importance(out / SUMS, settings.alpha, out / IMATRIX)
        with scratch_folder(job.work, "header") as scratch:
            keep_header(job, write_header(job, scratch), calibration.name)
    return analysis.scores


def remix_importance(folder: Path, alpha: float, merged: Sequence[Path] = ()) -> Path:
    """Write the importance matrix of an analyzed model again at another ratio, merged with others; no pass."""
    if not (folder / SUMS).is_file():
        raise ArtifactError(f"{folder} holds no {SUMS}", path=folder / SUMS, hint="give the folder of `analyze`")
    with lock_folder(folder / WORK):
        return write_importance(folder / SUMS, alpha, folder / IMATRIX, merged=merged)


def leave_records(job: Job, made: Made, analysis: AnalysisFiles, judged: Quality | str) -> Conversion:
    """Plan, scores, sums and importance matrix beside the model, and the bundle when asked for."""
    out, plan = job.out, made.choice.plan
    quality, unmeasured = (None, judged) if isinstance(judged, str) else (judged, "")
    write_record(out / PLAN, plan)
    write_text(out / TENSOR_TYPES, tensor_types_text(plan))
    for name in (SCORES, SUMS, REFERENCE):
        _copy(analysis.folder / name, out / name)
    _copy(job.work / IMATRIX, out / IMATRIX)
    (out / QUALITY).unlink(missing_ok=True)
    if quality is not None:
        write_record(out / QUALITY, quality)
    bundled = made.target.with_name(bundle_name(made.target.name)) if job.settings.bundle else None
    if bundled is not None and job.mmproj is not None:
        with job.watch.measure("bundle"):
            bundle(made.target, job.mmproj, bundled)
    return Conversion(
        made.target, job.mmproj, bundled, out / PLAN, out / SCORES, out / IMATRIX, plan, analysis.scores,
        made.choice.layout.layer_bytes(plan), dict(job.watch.seconds), job.family.layout, made.choice.forecast,
        made.tps, quality, unmeasured, _better(job, plan, quality),
    )  # fmt: skip


def _better(job: Job, plan: Plan, quality: Quality | None) -> FrontierPoint | None:
    if quality is None:
        return None
    return better_preset(job.out, job.checkpoint.digest, plan.size_bytes, quality)


def finish(job: Job, request: str, calibration: CalibrationSet, result: Conversion) -> None:
    """Write the manifest, the last of all files but the report, which tells of it."""
    (job.out / REPORT).unlink(missing_ok=True)
    manifest = Manifest(
        request=request,
        checkpoint=job.checkpoint.digest,
        checkpoint_files=hash_headers(job.checkpoint),
        calibration=calibration.digest,
        name=job.name,
        source=hub_source(job.checkpoint.folder),
        settings=plain_settings(_decided(job.settings, result.plan)),
        versions=versions(),
        files=record_files([*result.files(), *(job.out / name for name in FOR_LATER if (job.out / name).exists())]),
        layer_bytes=result.layer_bytes,
        seconds=result.seconds,
    )
    write_manifest(job.out, manifest)


def _decided(settings: Settings, plan: Plan) -> Settings:
    """Settings that give the plan again without anything measured."""
    if settings.order == MIX:
        return replace(settings, max_size=plan.size_bytes, low_layers=None)
    measured = settings.by_speed or settings.max_drop is not None
    return replace(settings, low_type=plan.low_type, low_layers=len(plan.low_layers)) if measured else settings


def _finished_conversion(job: Job, manifest: Manifest) -> Conversion:
    out = job.out
    plan = read_record(out / PLAN, Plan)
    models = ModelFiles.among(manifest.files)
    if models.text is None:
        raise ArtifactError(f"{out / MANIFEST} names no model", path=out / MANIFEST, hint="delete it and convert again")
    bundled = out / models.bundle if models.bundle else None
    scores = read_record(out / SCORES, LayerScores)
    quality = read_record(out / QUALITY, Quality) if QUALITY in manifest.files else None
    return Conversion(
        out / models.text, job.mmproj, bundled, out / PLAN, out / SCORES, out / IMATRIX, plan, scores,
        manifest.layer_bytes, {}, job.family.layout, quality=quality, better=_better(job, plan, quality),
        report=out / REPORT if (out / REPORT).is_file() else None,
    )  # fmt: skip


def plain_settings(settings: Settings) -> dict[str, str | int | float | bool | None]:
    """What of the settings changes the results, as plain JSON values."""
    without = ("threads", "work", "keep_parts", "imatrix", "profile")
    plain = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(settings).items()
        if name not in without
    }
    return plain | {"imatrix": " ".join(f"{sha256_of(path)}:{path.name}" for path in settings.imatrix)}


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as partial:
        shutil.copyfile(source, partial)


def is_analysis(source: str) -> bool:
    """Whether a path is the folder of an analysis, not a model."""
    return (Path(source) / SCORES).is_file()


def plan_from_analysis(folder: Path, settings: Settings, progress: Progress = silent) -> tuple[Plan, Forecast | None]:
    """Make the plan of an analyzed model and leave it in the folder, also as llama-quantize's type file.

    The forecast of its speed is there where this CPU was profiled.
    """
    rule = speed_rule(settings, progress)
    with lock_folder(folder / WORK):
        choice = plan_again(folder, settings, rule)
        write_record(folder / PLAN, choice.plan)
        write_text(folder / TENSOR_TYPES, tensor_types_text(choice.plan))
    return choice.plan, choice.forecast


def size_table_of_model(model: str, settings: Settings) -> SizeTable:
    """The sizes for every number of low layers, last layer first, of a model of which config.json is enough."""
    if settings.by_speed:
        raise RequestError(
            "a plan by speed needs the order of the layers", hint="give the folder of `luq-gguf analyze`, or convert"
        )
    folder, rule = resolve_model(model), speed_rule(settings)
    family, layout, has_tokenizer = layout_of_config(folder, settings, read_calibration(Settings(), silent).name)
    notes = ["the order of the layers is that of --order depth: other orders give slightly other sizes"]
    if not has_tokenizer:
        notes.append("without tokenizer.json: the file is larger by its vocabulary")
    notes += layout.fallback_notes()
    order = choose_order(None, "depth", family.layers)
    sizes, speeds = layout.sizes(order), tuple[float, ...]()
    if rule is not None:
        plans = (layout.plan(order, "depth", Budget(count), strict=False) for count in range(family.layers + 1))
        speeds = tuple(rule.forecast(layout.specs, plan).plan.generate for plan in plans)
        notes.append(f"tokens/s predicted for {rule.profile.cpu}, {rule.threads} threads")
        notes += [f"MIND: {rule.doubt}"] if rule.doubt else []
    inputs = layout.inputs
    return SizeTable(
        model_name(folder), family.layers, inputs.low_type, inputs.high_type, sizes, inputs.source_bytes, tuple(notes),
        speeds,
    )  # fmt: skip


def export_model(
    model: str,
    out: Path,
    dtype: str = "auto",
    mmproj_type: str = "f16",
    progress: Progress = silent,
    *,
    mmproj_layout: str | None = None,
) -> Export:
    """Write the 16-bit text GGUF and, for a model that takes images, the mmproj, as llama.cpp's converter would."""
    from luq_gguf.export import resolve_dtype

    job = open_job(model, out, Settings(mmproj_type=mmproj_type, mmproj_layout=mmproj_layout), progress)
    kind = resolve_dtype(job.checkpoint, dtype)
    text = out / f"{job.name}-{kind.upper()}.gguf"
    export_text(job.checkpoint, job.family, text, dtype=kind, progress=progress)
    if job.mmproj is not None:
        export_vision(job.checkpoint, job.family, job.mmproj, dtype=mmproj_type, progress=progress)
    return Export(text, job.mmproj, job.family.layout)


def quantize_file(
    source: Path, plan_file: Path, imatrix: Path, target: Path, threads: int = 0, progress: Progress = silent
) -> None:
    """Quantize an existing 16-bit GGUF of a model by its plan; the same tensors that `convert` assembles."""
    plan = read_record(plan_file, Plan)
    require_plan_of(source, plan, plan_file)
    matrix = floor_importance(read_importance(imatrix))
    check_importance(matrix, weights_to_quantize(plan), source)
    types = {name: GGMLQuantizationType[kind] for name, kind in plan.types.items()}
    with scratch_folder(target.parent, "imatrix") as scratch:
        write_imatrix(scratch / IMATRIX, matrix)
        quantize_gguf(
            source, target, types, scratch / IMATRIX, note=ImatrixNote.of(imatrix), high_type=plan.high_type,
            threads=threads, progress=progress,
        )  # fmt: skip
