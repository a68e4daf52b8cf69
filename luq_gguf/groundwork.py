"""What every file of a model is made from: its header, its analysis, its importance matrix, its vision part.

Takes a job and its samples; conversions and sweeps begin with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from luq_gguf import TOOL
from luq_gguf.analysis import AnalysisFiles, is_analyzed, run_analysis
from luq_gguf.artifacts import move_file, scratch_folder
from luq_gguf.export import export_vision
from luq_gguf.imatrix import (
    check_importance,
    floor_importance,
    merge_importance,
    mix_importance,
    read_sums,
    write_imatrix,
)
from luq_gguf.importance import ImportanceMatrix, read_importance
from luq_gguf.job import IMATRIX, Job, Settings, key_of
from luq_gguf.layout import Layout, lay_out, write_header
from luq_gguf.making import Maker
from luq_gguf.manifest import versions
from luq_gguf.prompts import Prompts, tokenize_calibration
from luq_gguf.quantizer import Quantizer
from luq_gguf.resources import estimate, estimate_analysis, require_resources
from luq_gguf.samples import CalibrationSet
from luq_gguf.speed_budget import AUTO_TYPES
from luq_gguf.trials import Trials, open_trials
from luq_gguf.workload import expected_plan


@dataclass(frozen=True)
class Groundwork:
    """A model ready to be made in any plan; `dataset` names what its importance matrix was made of.

    `mmproj` is the vision part in the work folder.
    """

    maker: Maker
    calibration: CalibrationSet
    analysis: AnalysisFiles
    dataset: str
    mmproj: Path | None

    def lay_out(self, settings: Settings) -> Layout:
        """The types that its tensors may get by these settings."""
        maker = self.maker
        return lay_out(maker.job.checkpoint.digest, maker.header, settings, self.dataset, maker.quantizer)

    def open_trials(self) -> Trials | None:
        """Trials of its plans, or None where no sample with an answer was held out."""
        return open_trials(self.maker, self.mmproj, self.calibration, self.analysis.reference)

    def leave_vision(self) -> None:
        """Move the vision part to its final name."""
        target = self.maker.job.mmproj
        if self.mmproj is None or target is None:
            return
        move_file(self.mmproj, target)


@contextlib.contextmanager
def prepare(job: Job, calibration: CalibrationSet, brought: ImportanceMatrix | None = None) -> Iterator[Groundwork]:
    """Do the groundwork, or take it from an earlier run; an importance matrix that was brought replaces the measured.

    Raises LuqError with what is wrong before the analysis, wherever it can be known before.
    """
    settings = job.settings
    dataset = brought.dataset if brought else calibration.name
    with scratch_folder(job.work, "header") as scratch, Quantizer() as quantizer:
        with job.watch.measure("types"):
            header = write_header(job, scratch)
            some = replace(settings, low_type=AUTO_TYPES[0]) if settings.by_speed else settings
            first = lay_out(job.checkpoint.digest, header, some, dataset, quantizer)
        if brought:
            check_importance(brought, first.surely_quantized(), header)
        prompts = check_first(job, first, calibration)
        analysis = run_analysis(job, calibration, prompts)
        imatrix = write_importance(analysis.sums, settings.alpha, job.work / IMATRIX, instead=brought)
        maker = Maker(job, header, imatrix, quantizer)
        yield Groundwork(maker, calibration, analysis, dataset, _vision_part(job))


def check_first(job: Job, layout: Layout, calibration: CalibrationSet) -> Prompts | None:
    """Refuse, before any work, a budget that no file meets and what takes more disk or memory than there is.

    Gives the tokenized samples; None where they are not needed, since the analysis is there from an earlier run.
    """
    expected_plan(layout, job.settings, job.family.layers)
    prompts = _prompts(job, calibration)
    require_resources(job, estimate(job, layout, prompts))
    return prompts


def check_analysis(job: Job, calibration: CalibrationSet) -> Prompts | None:
    """The same for an analysis alone."""
    prompts = _prompts(job, calibration)
    if prompts is not None:
        require_resources(job, estimate_analysis(job, prompts), "analyzing")
    return prompts


def _prompts(job: Job, calibration: CalibrationSet) -> Prompts | None:
    if is_analyzed(job, calibration):
        return None
    return tokenize_calibration(job.checkpoint, job.family, calibration, job.settings.image_max_tokens)


def _vision_part(job: Job) -> Path | None:
    """The vision part in the work folder, from where a conversion takes it; None for a model that takes no images."""
    if job.mmproj is None:
        return None
    key = key_of(versions(), job.checkpoint.fingerprint, job.settings.mmproj_type, job.family.layout)
    path = job.work / f"mmproj-{key}.gguf"
    if not path.is_file():
        with job.watch.measure("mmproj"):
            export_vision(
                job.checkpoint, job.family, path, dtype=job.settings.mmproj_type, made_by=TOOL, progress=job.progress
            )
    return path


def write_importance(
    sums: Path, alpha: float, target: Path, *, merged: Sequence[Path] = (), instead: ImportanceMatrix | None = None
) -> Path:
    """The importance matrix at a ratio of image and text tokens, from an analysis' sums.

    With `merged`, those files are added to it; `instead`, a matrix that was brought, takes its place.
    """
    matrix = instead or mix_importance(read_sums(sums), alpha)
    if merged:
        matrix = floor_importance(merge_importance([matrix, *(read_importance(path) for path in merged)]))
    write_imatrix(target, matrix)
    return target
