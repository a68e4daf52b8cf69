"""The functions that `import luq_gguf` offers: each does what the command of its name does, with keyword options.

Takes paths, names and plain values, which are checked before anything is done; gives frozen records that show
themselves in a notebook. Nothing is printed, and nothing is kept between calls but what lies in the named folders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

from luq_gguf.amounts import parse_share, parse_size
from luq_gguf.errors import RequestError
from luq_gguf.failures import luq_errors
from luq_gguf.progress import Progress, silent

if TYPE_CHECKING:
    from luq_gguf.artifacts import LayerScores, Plan
    from luq_gguf.bench_record import BenchRecord
    from luq_gguf.pipeline import Conversion, SizeTable
    from luq_gguf.quality import Evaluation
    from luq_gguf.speed_budget import Forecast

__all__ = [
    "Analysis", "AnalysisOptions", "BenchmarkOptions", "BudgetOptions", "CalibrationOptions", "ConvertOptions",
    "EvaluateOptions", "Evaluations", "FileOptions", "OrderOptions", "PassOptions", "PlanOptions", "Planned",
    "TypeOptions", "analyze", "benchmark", "convert", "evaluate", "plan", "sizes",
]  # fmt: skip

FilePath = str | Path
RequestT = TypeVar("RequestT")


class OrderOptions(TypedDict, total=False):
    """In which order layers become low."""

    order: str
    """entropy (default), entropy-input, depth, reverse, random, cosine, change, damage or mix."""
    seed: int
    """Seed of every random choice; default 0."""


class CalibrationOptions(TypedDict, total=False):
    """What the model is measured on."""

    calib: str | Path | None
    """A file or folder of samples, or the name of a shipped set; default: the set general."""
    samples: int | None
    """A seeded subset of so many samples."""
    skip_bad: bool
    """Leave out samples that cannot be read."""
    image_max_tokens: int | None
    """Larger images are made smaller."""


class PassOptions(TypedDict, total=False):
    """How the model is measured."""

    alpha: float
    """Share of image+text tokens in the importance matrix, 0 to 1; default 0.5."""
    compute_type: str
    """auto (default), bf16 or f32."""
    threads: int
    """Threads; 0 (default) takes one for each core."""
    work: str | Path | None
    """Folder for what later runs reuse; default: .work beside the results."""
    check_all: bool
    """Hash every byte of the checkpoint."""


class BudgetOptions(TypedDict, total=False):
    """What the file may be; all that is given must hold, and nothing given means 3/7 of the layers low."""

    low_layers: int | None
    """So many layers get the low type."""
    max_size: int | str | None
    """Bytes of the text GGUF, or text such as "3.4GiB"."""
    min_tps: float | None
    """Predicted tokens a second on this CPU, or on the profile's."""
    max_drop: float | str | None
    """Share of answer tokens in which the file may differ from the 16-bit model, 0.1 or "10%"; `convert` only."""


class TypeOptions(TypedDict, total=False):
    """Which types layers get, and which CPU speeds are predicted for."""

    low_type: str
    """Type of the low layers' weights, or auto; default IQ1_M."""
    high_type: str
    """llama.cpp's file type for everything else; default Q4_K_M."""
    strict: bool
    """A row that the low type cannot take is an error."""
    threads: int
    """Threads; 0 (default) takes one for each core."""
    profile: str | Path | None
    """The profile of a CPU; default: this one's, where it was measured."""


class FileOptions(TypedDict, total=False):
    """Which files a conversion makes, and what it measures of them."""

    mmproj_type: str
    """f16 (default), bf16 or f32."""
    mmproj_layout: str | None
    """LLaVA-1.5: exact (default), no-class or standard."""
    keep_parts: bool | None
    """Keep quantized layers for other budgets; default: those of small models."""
    bundle: bool
    """Also write text model and vision part as one file."""
    imatrix: Sequence[str | Path]
    """Importance matrices that take the place of the measured one, merged."""
    evaluate: bool
    """Measure the quality of the file; default True."""
    sequential: bool
    """Measure the importance matrix again along the quantized layers."""


class AnalysisOptions(OrderOptions, CalibrationOptions, PassOptions, total=False):
    """The options of `analyze`."""


class PlanOptions(OrderOptions, BudgetOptions, TypeOptions, total=False):
    """The options of `plan`."""


class ConvertOptions(
    OrderOptions, CalibrationOptions, PassOptions, BudgetOptions, TypeOptions, FileOptions, total=False
):
    """The options of `convert`: those of `analyze` and `plan`, and which files are made."""


class EvaluateOptions(TypedDict, total=False):
    """The options of `evaluate`; `reference`, `data` or both must be given."""

    mmproj: str | Path | None
    """The models' vision part; a bundle brings its own."""
    reference: str | Path | None
    """What is right: the folder of `analyze` or `convert`, or a 16-bit GGUF."""
    data: str | Path | None
    """Labelled questions, or a benchmark's table."""
    benchmark: str | None
    """The benchmark whose table `data` is, such as mme or textvqa."""
    image_max_tokens: int | None
    """Larger images are made smaller; default: as in the analysis."""
    skip_bad: bool
    """Leave out questions that cannot be asked."""
    work: str | Path | None
    """Folder for what later evaluations reuse; default: beside the reference, else in the user's cache folder."""
    threads: int
    """Threads; 0 (default) takes one for each core."""


class BenchmarkOptions(TypedDict, total=False):
    """The options of `benchmark`."""

    prompt: int
    """Tokens of the prompt; default 128."""
    generate: int
    """Tokens decoded one at a time; default 32."""
    rounds: int
    """Rounds in which the files take turns; default 6, the fewest that give a 95 % interval."""
    threads: int | Sequence[int]
    """Threads, or several numbers to sweep; default: one for each core."""
    cpus: Sequence[int] | None
    """Stay on these processors."""
    mmproj: str | Path | None
    """A vision part, to measure `image` with."""
    image: str | Path | None
    """An image to look at."""
    force: bool
    """Measure files larger than the free memory, too."""


@dataclass(frozen=True)
class Analysis:
    """What `analyze` found, and the folder in which it lies."""

    folder: Path
    scores: LayerScores

    def _repr_html_(self) -> str:
        return self.scores._repr_html_()


@dataclass(frozen=True)
class Planned:
    """A plan, the folder in which it lies, and its predicted speed where this CPU was profiled."""

    folder: Path
    plan: Plan
    forecast: Forecast | None

    def _repr_html_(self) -> str:
        from luq_gguf.notebook import plan_html

        return plan_html(self.plan, self.forecast)


class Evaluations(tuple["Evaluation", ...]):
    """What `evaluate` measured, a record a file in the order in which they were named."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return "".join(each._repr_html_() for each in self)


def analyze(
    model: FilePath, out: FilePath, *, progress: Progress = silent, **options: Unpack[AnalysisOptions]
) -> Analysis:
    """Measure every layer's entropy and the importance matrix of a model, without quantizing.

    `model` is a folder with a Hugging Face checkpoint, or a hub id; what was found lies in the folder `out`. Raises
    LuqError.
    """
    from luq_gguf import pipeline
    from luq_gguf.job import Settings

    settings = _checked(Settings, options, AnalysisOptions, "analyze")
    with luq_errors(progress) as listen:
        return Analysis(Path(out), pipeline.analyze(str(model), Path(out), settings, listen))


def plan(analysis: Analysis | FilePath, *, progress: Progress = silent, **options: Unpack[PlanOptions]) -> Planned:
    """Choose a type for every tensor of an analyzed model; the size is then known to the byte.

    `analysis` is what `analyze` gave, or the folder of an analysis or conversion, in which the plan is left. Raises
    LuqError, BudgetError where no plan meets the budget.
    """
    from luq_gguf import pipeline
    from luq_gguf.job import Settings

    folder = analysis.folder if isinstance(analysis, Analysis) else Path(analysis)
    settings = _checked(Settings, options, PlanOptions, "plan")
    with luq_errors(progress) as listen:
        if not pipeline.is_analysis(str(folder)):
            raise RequestError(f"{folder} holds no analysis", hint="analyze the model first, or ask for its `sizes`")
        return Planned(folder, *pipeline.plan_from_analysis(folder, settings, listen))


def sizes(model: FilePath, **options: Unpack[TypeOptions]) -> SizeTable:
    """The size of a model's text GGUF for every number of low layers, from `config.json` alone. Raises LuqError."""
    from luq_gguf import pipeline
    from luq_gguf.job import Settings

    settings = _checked(Settings, options, TypeOptions, "sizes")
    with luq_errors(silent):
        return pipeline.size_table_of_model(str(model), settings)


def convert(
    model: FilePath, out: FilePath, *, progress: Progress = silent, **options: Unpack[ConvertOptions]
) -> Conversion:
    """Convert a checkpoint: measure its layers, plan, quantize, verify, judge.

    `model` is a folder with a Hugging Face checkpoint, or a hub id; the files lie in the folder `out`. What an earlier
    run left there is used again, an interrupted one goes on where it was. Raises LuqError.
    """
    from luq_gguf import pipeline
    from luq_gguf.job import Settings

    settings = _checked(Settings, options, ConvertOptions, "convert")
    with luq_errors(progress) as listen:
        return pipeline.convert(str(model), Path(out), settings, listen)


def evaluate(
    models: FilePath | Sequence[FilePath], *, progress: Progress = silent, **options: Unpack[EvaluateOptions]
) -> Evaluations:
    """Measure how good files are: what they say against the 16-bit model, and what they score on labelled questions.

    `models` are text GGUFs or bundles that share a vision part. An evaluation that was stopped goes on where it was.
    Raises LuqError.
    """
    from luq_gguf.quality import EvaluationRequest, run_evaluation

    given = {"models": _several(models), **options}
    request = _checked(EvaluationRequest, given, EvaluateOptions, "evaluate", "models")
    with luq_errors(progress) as listen:
        return Evaluations(run_evaluation(request, listen))


def benchmark(
    files: FilePath | Sequence[FilePath], *, progress: Progress = silent, **options: Unpack[BenchmarkOptions]
) -> BenchRecord:
    """Measure how fast GGUF files are on this CPU, in turn; the others are held against the first.

    The record holds every sample, and is what `luq-gguf bench-compare` takes as a file. Raises LuqError.
    """
    from luq_gguf.bench_run import BenchRequest, run_bench

    given: dict[str, Any] = {"files": _several(files), **options}
    if isinstance(threads := given.get("threads"), int):
        given["threads"] = (threads,) if threads else ()
    request = _checked(BenchRequest, given, BenchmarkOptions, "benchmark", "files")
    with luq_errors(progress) as listen:
        return run_bench(request, listen)[0]


def _several(paths: FilePath | Sequence[FilePath]) -> tuple[FilePath, ...]:
    return (paths,) if isinstance(paths, str | Path) else tuple(paths)


WRITTEN: dict[str, Callable[[str], int | float]] = {"max_size": parse_size, "max_drop": parse_share}
"""Options that may be given as text."""


def _checked(kind: type[RequestT], given: Mapping[str, Any], known: Any, function: str, *more: str) -> RequestT:
    """The request that options make; raises TypeError for unknown ones, RequestError for values that cannot be."""
    from pydantic import TypeAdapter, ValidationError

    if unknown := given.keys() - known.__optional_keys__ - set(more):
        raise TypeError(f"{function}() got an unexpected keyword argument {min(unknown)!r}")
    values = {
        name: WRITTEN[name](value) if name in WRITTEN and isinstance(value, str) else value
        for name, value in given.items()
    }
    try:
        made: RequestT = TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else function
        hint = first["msg"][0].lower() + first["msg"][1:]
        raise RequestError(f"{name} is {first['input']!r}", hint=hint) from error
    return made
