"""The analysis as a stage: samples and a model in, a folder of results out, kept under a name made of its inputs.

Knows what can be reused and where a killed pass goes on; the pass itself is that of `activations`.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from luq_gguf.artifacts import LayerScores, read_record, scratch_folder, write_record
from luq_gguf.calibration import load_calibration
from luq_gguf.errors import ArtifactError
from luq_gguf.imatrix import write_sums
from luq_gguf.job import REFERENCE, SCORES, SUMS, Job, Settings, key_of
from luq_gguf.manifest import versions
from luq_gguf.progress import Progress
from luq_gguf.prompts import Prompts
from luq_gguf.samples import CalibrationSet


@dataclass(frozen=True)
class AnalysisFiles:
    """Where a finished analysis lies."""

    folder: Path

    @property
    def scores(self) -> LayerScores:
        """What it says of the layers."""
        return read_record(self.folder / SCORES, LayerScores)

    def require_of(self, checkpoint: str) -> AnalysisFiles:
        """These files; raises ArtifactError where they are of another checkpoint than the one of this digest."""
        if self.scores.checkpoint != checkpoint:
            raise ArtifactError(
                f"{self.folder} is of another checkpoint", path=self.folder, hint="delete it and run the command again"
            )
        return self

    @property
    def sums(self) -> Path:
        """The sums of squared inputs by modality."""
        return self.folder / SUMS

    @property
    def reference(self) -> Path:
        """What the 16-bit model says at the held-out answers."""
        return self.folder / REFERENCE


def read_calibration(settings: Settings, progress: Progress) -> CalibrationSet:
    """The samples that the settings name; None stands for the built-in ones."""
    return load_calibration(
        settings.calib, samples=settings.samples, seed=settings.seed, skip_bad=settings.skip_bad, progress=progress
    )


def analysis_key(job: Job, calibration: CalibrationSet) -> str:
    """What names an analysis in the work folder: it changes with everything that its results depend on."""
    from luq_gguf.activations import resolve_compute_type
    from luq_gguf.reference import FORMAT

    settings, compute_type = job.settings, resolve_compute_type(job.settings.compute_type)
    choices = (settings.seed, compute_type, settings.measures_input, settings.image_max_tokens, settings.skip_bad)
    return key_of(versions(), FORMAT, job.checkpoint.fingerprint, calibration.digest, *choices)


def is_analyzed(job: Job, calibration: CalibrationSet) -> bool:
    """Whether an earlier run has left the analysis that this job wants."""
    return (job.work / f"analysis-{analysis_key(job, calibration)}").is_dir()


def run_analysis(job: Job, calibration: CalibrationSet, prompts: Prompts | None = None) -> AnalysisFiles:
    """One pass over the decoder, or the results of an earlier one with the same inputs.

    A pass that was killed goes on at the layer where it was; the state of a pass with other inputs is dropped.
    `prompts` are the calibration set's, where it was tokenized before.
    """
    from luq_gguf.activations import analyze as analyze_activations
    from luq_gguf.activations import resolve_compute_type
    from luq_gguf.reference import write_reference

    settings = job.settings
    compute_type = resolve_compute_type(settings.compute_type)
    key = analysis_key(job, calibration)
    folder, state = job.work / f"analysis-{key}", job.work / f"analyzing-{key}"
    finished = folder.is_dir()
    for other in set(job.work.glob("analyzing-*")) - (set() if finished else {state}):
        shutil.rmtree(other)
    if finished:
        return AnalysisFiles(folder).require_of(job.checkpoint.digest)
    with job.watch.measure("analyze"):
        result = analyze_activations(
            job.checkpoint,
            job.family,
            calibration,
            compute_type=compute_type,
            seed=settings.seed,
            progress=job.progress,
            input_entropy=settings.measures_input,
            keep=state,
            image_tokens=settings.image_max_tokens,
            prompts=prompts,
            threads=settings.threads,
        )
        with scratch_folder(job.work, "analysis") as scratch:
            partial = scratch / "analysis"
            write_sums(partial / SUMS, result.sums)
            write_reference(partial / REFERENCE, result.reference)
            write_record(partial / SCORES, result.scores)
            partial.rename(folder)
        shutil.rmtree(state)
    return AnalysisFiles(folder)
