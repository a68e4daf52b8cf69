"""The quality of finished files as a stage: by which reference, on which samples, with what kept between runs.

Takes files and where to find a yardstick: the folder of an analysis or conversion, a 16-bit GGUF, labelled data, a
benchmark's table. The figures are made by `judging` and `vqa`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from luq_gguf.artifacts import Record, cache_folder
from luq_gguf.calibration import load_calibration
from luq_gguf.embeddings import EmbeddingStore
from luq_gguf.errors import ArtifactError, CalibrationError, RequestError
from luq_gguf.job import REFERENCE, WORK, key_of
from luq_gguf.judging import Quality, judge, refer, summarize
from luq_gguf.loadable import open_loadable
from luq_gguf.manifest import versions
from luq_gguf.progress import Progress, silent
from luq_gguf.prompts import MAX_TOKENS
from luq_gguf.reference import Reference, read_reference
from luq_gguf.runtime import Runtime
from luq_gguf.samples import CalibrationSet, Sample
from luq_gguf.showcase import Answers, choose_answers
from luq_gguf.vqa.asking import BenchmarkResult, ask_all, digest_of, score_all
from luq_gguf.vqa.benchmarks import EXACT, Benchmark, find_benchmark
from luq_gguf.vqa.questions import Question, read_questions

HEADROOM = 256
"""Tokens that an answer may have beside the longest sample."""


@dataclass(frozen=True)
class Yardstick:
    """What files are held against: a reference, the samples that it was made of, and how large their images are.

    That is the most and the least tokens that an image has; None leaves them to whom runs a file.
    """

    name: str
    reference: Reference
    samples: tuple[Sample, ...]
    image_tokens: int | None
    least_image_tokens: int | None = None


@dataclass(frozen=True)
class Evaluator:
    """How files are run: with which vision part, on how many threads, and where things are kept between runs."""

    mmproj: Path | None
    work: Path
    threads: int = 0
    image_tokens: int | None = None
    progress: Progress = silent

    @cached_property
    def embeddings(self) -> EmbeddingStore:
        """What the vision part makes of images; one for all files, so that the mmproj is hashed once."""
        return EmbeddingStore(self.work / "embeddings")

    def open(self, model: Path, yardstick: Yardstick | None = None) -> Runtime:
        """A running model, to be used as a context manager; its images are as large as those of the yardstick."""
        return Runtime(
            model,
            self.mmproj,
            threads=self.threads or None,
            context=MAX_TOKENS + HEADROOM,
            image_tokens=(yardstick.image_tokens if yardstick else None) or self.image_tokens,
            least_image_tokens=yardstick.least_image_tokens if yardstick else None,
            embeddings=self.embeddings,
        )

    def quality(self, model: Path, yardstick: Yardstick) -> Quality:
        """How well a file says what the reference says."""
        return self.judge(model, yardstick)[0]

    def judge(self, model: Path, yardstick: Yardstick) -> tuple[Quality, Answers]:
        """How well a file says what the reference says, and some of the answers that this was measured on."""
        with self.open(model, yardstick) as runtime:
            found = judge(runtime, yardstick.samples, yardstick.reference, self.progress)
        return summarize(found, yardstick.name), choose_answers(found)

    def ask(
        self, model: Path, benchmark: Benchmark, questions: Sequence[Question], data: Path, *, skip_bad: bool = False
    ) -> BenchmarkResult:
        """What a file answers to the questions of a benchmark; goes on where an earlier run was stopped."""
        vision = _identity(self.mmproj) if self.mmproj else None
        key = key_of(
            versions()["llama-cpp-python"], _identity(model), vision, benchmark.name, self.image_tokens,
            benchmark.max_tokens, digest_of(questions),
        )  # fmt: skip
        with self.open(model) as runtime:
            kept = self.work / f"answers-{key}.jsonl"
            found, left_out = ask_all(
                runtime, benchmark, questions, kept, skip_bad=skip_bad, progress=self.progress
            )  # fmt: skip
        return score_all(benchmark, found, model=model.name, data=data.name, left_out=len(left_out))


def _identity(file: Path) -> tuple[str, int, int]:
    """What changes with a file, without reading it."""
    stat = file.stat()
    return str(file.resolve()), stat.st_size, stat.st_mtime_ns


class Evaluation(Record):
    """Everything that was measured of one file."""

    model: str
    size_bytes: int
    quality: Quality | None = None
    benchmark: BenchmarkResult | None = None
    reference_benchmark: BenchmarkResult | None = None

    @property
    def accuracy_drop(self) -> float | None:
        """The benchmark's score against the 16-bit file's, as a share of that; None where it was not measured."""
        if self.benchmark is None or self.reference_benchmark is None:
            return None
        full = self.reference_benchmark.figures["score"].value
        return 1 - self.benchmark.figures["score"].value / full if full else None

    def _repr_html_(self) -> str:
        from luq_gguf.notebook import evaluation_html

        return evaluation_html(self)


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate, by what; see `evaluate_files` and `Evaluator`. `work` None takes the folder of the reference.

    Raises RequestError for a number of threads below 0; 0 takes one for each core.
    """

    models: tuple[Path, ...]
    mmproj: Path | None = None
    reference: Path | None = None
    data: Path | None = None
    benchmark: str | None = None
    image_max_tokens: int | None = None
    skip_bad: bool = False
    work: Path | None = None
    threads: int = 0

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise RequestError(f"threads is {self.threads}", hint="give at least 0")


def run_evaluation(request: EvaluationRequest, progress: Progress = silent) -> list[Evaluation]:
    """Everything that is to be measured of every file; errors as evaluate_files."""
    work = request.work or work_folder(request.reference)
    evaluator = Evaluator(request.mmproj, work, request.threads, request.image_max_tokens, progress)
    return evaluate_files(
        request.models, evaluator, reference=request.reference, data=request.data, benchmark=request.benchmark,
        skip_bad=request.skip_bad,
    )  # fmt: skip


def evaluate_files(
    models: Sequence[Path],
    evaluator: Evaluator,
    *,
    reference: Path | None = None,
    data: Path | None = None,
    benchmark: str | None = None,
    skip_bad: bool = False,
) -> list[Evaluation]:
    """Agreement with a reference, accuracy on labelled data or a benchmark, or both, of every file.

    Raises RequestError where there is nothing to judge by, CalibrationError for data without labels, ArtifactError
    where the reference is of another model or other samples.
    """
    if benchmark is not None and data is None:
        raise RequestError(f"--benchmark {benchmark} has no data", hint="give the benchmark's table with --data")
    if reference is None and data is None:
        raise RequestError(
            "there is nothing to judge by", hint="give --ref FOLDER or a 16-bit GGUF, labelled --data, or a --benchmark"
        )
    for model in models:
        open_loadable(model)
    rule = find_benchmark(benchmark) if benchmark else EXACT
    questions = _questions(rule, data, evaluator.progress, skip_bad=skip_bad) if data else []
    yardstick = None if reference is None else _yardstick(reference, evaluator, questions)
    by_model = reference is not None and reference.is_file()
    full = (
        evaluator.ask(reference, rule, questions, data, skip_bad=skip_bad) if by_model and data and reference else None
    )
    return [
        Evaluation(
            model=str(model),
            size_bytes=model.stat().st_size,
            quality=evaluator.quality(model, yardstick) if yardstick else None,
            benchmark=evaluator.ask(model, rule, questions, data, skip_bad=skip_bad) if data else None,
            reference_benchmark=full,
        )
        for model in models
    ]


def _questions(rule: Benchmark, data: Path, progress: Progress, *, skip_bad: bool) -> list[Question]:
    """The questions of a benchmark's table, or of labelled data in any form that calibration takes."""
    if rule is not EXACT:
        asked = rule.prepare(read_questions(data, rule.needed, progress))
        blind = [question for question in asked if question.image is None]
        if blind and not skip_bad:
            raise CalibrationError(f"{blind[0].origin} has no image", hint="leave such rows out with --skip-bad")
        return [question for question in asked if question.image is not None]
    found = load_calibration(data, held_out_share=0, skip_bad=skip_bad, progress=progress)
    unlabelled = [sample for sample in found.samples if sample.answer is None]
    if unlabelled and not skip_bad:
        raise CalibrationError(
            f"{unlabelled[0].origin or unlabelled[0].id} has no answer, {len(unlabelled)} rows of {data} have none",
            hint='label them with "answer", or leave them out with --skip-bad',
        )
    return [
        Question(
            id=sample.id, prompt=sample.question, answers=(sample.answer,), category=sample.kind,
            group=sample.picture.key if sample.picture else sample.id, sample=sample, origin=sample.origin,
        )
        for sample in found.samples
        if sample.answer is not None
    ]  # fmt: skip


def _yardstick(reference: Path, evaluator: Evaluator, questions: Iterable[Question]) -> Yardstick:
    if reference.is_dir():
        return stored_yardstick(reference, evaluator.progress)
    samples = tuple(question.sample for question in questions if question.sample is not None)
    if not samples:
        samples = load_calibration(None, progress=evaluator.progress).held_out
    return yardstick_of_model(reference, samples, evaluator)


def stored_yardstick(folder: Path, progress: Progress = silent) -> Yardstick:
    """The yardstick of an analysis or conversion: its stored reference, and its held-out samples read again.

    Raises ArtifactError where the folder has no reference, or the samples are no longer those that it was made of.
    """
    path = folder / REFERENCE
    if not path.is_file():
        hint = "give a folder of `analyze` or `convert`, or a 16-bit GGUF"
        raise ArtifactError(f"{folder} holds no {REFERENCE}", path=path, hint=hint)
    reference = read_reference(path)
    recipe = reference.context.get("recipe")
    try:
        calibration = load_calibration(**recipe, progress=progress) if isinstance(recipe, dict) else None
    except TypeError as error:
        raise ArtifactError(f"{path} names samples in a way that cannot be", path=path, hint=AGAIN) from error
    if calibration is None or calibration.digest != reference.context.get("calibration_digest"):
        raise ArtifactError(f"the samples of {path} have changed since", path=path, hint=AGAIN)
    return yardstick_of_calibration(str(path), reference, calibration)


AGAIN = "analyze the model again"


def yardstick_of_calibration(name: str, reference: Reference, calibration: CalibrationSet) -> Yardstick:
    """The yardstick of a reference whose samples are at hand; numbers of tokens that cannot be are not believed."""

    def tokens(key: str) -> int | None:
        found = reference.context.get(key)
        return found if isinstance(found, int) and 1 <= found <= MAX_TOKENS else None

    return Yardstick(name, reference, calibration.held_out, tokens("image_tokens"), tokens("least_image_tokens"))


def yardstick_of_model(model: Path, samples: Sequence[Sample], evaluator: Evaluator) -> Yardstick:
    """The yardstick that a 16-bit GGUF is: what it says at the answers of samples.

    A model without its vision part judges by the samples without an image.
    """
    with evaluator.open(model) as runtime:
        if not runtime.sees:
            samples = [sample for sample in samples if sample.picture is None]
            if not samples:
                raise RequestError("every sample has an image", hint="give the vision part with --mmproj")
        reference = refer(runtime, samples, model.name, evaluator.progress)
    return Yardstick(model.name, reference, tuple(samples), evaluator.image_tokens)


def work_folder(reference: Path | None) -> Path:
    """Where evaluations keep what later ones can reuse: beside an analysis, else in the user's cache folder."""
    if reference is not None and reference.is_dir():
        return reference / WORK
    return cache_folder() / "evaluations"
