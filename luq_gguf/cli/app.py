"""Every command: its options, its help, one call into the pipeline, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luq_gguf import __version__
from luq_gguf.cli import options
from luq_gguf.cli.bench import BenchCommand
from luq_gguf.cli.bench import bench as bench_command
from luq_gguf.cli.bench import bench_compare as bench_compare_command
from luq_gguf.cli.calib import calib as calib_commands
from luq_gguf.cli.doctor import doctor as doctor_command
from luq_gguf.cli.eval import evaluate
from luq_gguf.cli.progress import show_progress
from luq_gguf.cli.report import report as report_command
from luq_gguf.cli.shape import JUDGE, MACHINE, MAKE, STAGES, Commands, GuidedCommand
from luq_gguf.cli.speed import profile as profile_command
from luq_gguf.cli.sweep import sweep as sweep_command

if TYPE_CHECKING:
    from luq_gguf.pipeline import Settings

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Vision-language models as mixed-precision GGUF: ultra-low bits where the activations bear them.",
    epilog="Example: luq-gguf convert Qwen/Qwen2.5-VL-7B-Instruct --out qwen --max-size 3.4GiB",
)


app.add_typer(calib_commands, name="calib", rich_help_panel=STAGES)
app.command(rich_help_panel=MACHINE)(profile_command)
app.command(cls=BenchCommand, rich_help_panel=JUDGE)(bench_command)
app.command(rich_help_panel=JUDGE)(bench_compare_command)
app.command("eval", rich_help_panel=JUDGE)(evaluate)
app.command("sweep", rich_help_panel=JUDGE)(sweep_command)
app.command("report", rich_help_panel=JUDGE)(report_command)
app.command(rich_help_panel=MACHINE)(doctor_command)


def _print(text: str) -> None:
    typer.echo(text)


def _print_json(content: Any) -> None:
    typer.echo(json.dumps(content))


def _version(asked: bool) -> None:
    if asked:
        _print(f"luq-gguf {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(cls=GuidedCommand, rich_help_panel=MAKE)
def convert(
    model: options.Model,
    out: options.Out,
    low_layers: options.LowLayers = None,
    max_size: options.MaxSize = None,
    min_tps: options.MinTps = None,
    max_drop: options.MaxDrop = None,
    low_type: options.LowType = "IQ1_M",
    high_type: options.HighType = "Q4_K_M",
    order: options.Order = "entropy",
    strict: options.Strict = False,
    calib: options.Calib = None,
    samples: options.Samples = None,
    image_max_tokens: options.ImageMaxTokens = None,
    skip_bad: options.SkipBad = False,
    alpha: options.Alpha = 0.5,
    imatrix: options.Imatrix = None,
    seed: options.Seed = 0,
    compute_type: options.ComputeType = "auto",
    mmproj_type: options.MmprojType = "f16",
    mmproj_layout: options.MmprojLayout = None,
    bundle: Annotated[
        bool,
        typer.Option(
            "--bundle", help="Also write text model and vision part as one file.", rich_help_panel=options.RESULTS
        ),
    ] = False,
    keep_parts: Annotated[
        bool | None,
        typer.Option(
            "--keep-parts/--no-keep-parts",
            help="Keep quantized layers for other budgets; default: below 2 GiB, or where an earlier run was to.",
            show_default=False,
            rich_help_panel=options.RESULTS,
        ),
    ] = None,
    sequential: Annotated[
        bool,
        typer.Option(
            "--sequential",
            help="Measure the importance matrix again along the quantized layers: two more passes, the same bytes.",
            rich_help_panel=options.METHOD,
        ),
    ] = False,
    no_eval: Annotated[
        bool, typer.Option("--no-eval", help="Do not measure the quality of the file.", rich_help_panel=options.RUN)
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say what time, memory and disk it would take, and do nothing; exit 1 where it does not fit.",
            rich_help_panel=options.RUN,
        ),
    ] = False,
    threads: options.Threads = 0,
    work: options.Work = None,
    check_all: options.CheckAll = False,
    profile: options.ProfileFile = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Convert a checkpoint: measure its layers, plan, quantize, verify.

    Example: luq-gguf convert Qwen/Qwen2.5-VL-7B-Instruct --out qwen --max-size 3.4GiB
    """
    from luq_gguf import pipeline
    from luq_gguf.cli.tables import format_conversion

    settings = pipeline.Settings(
        low_layers=low_layers, max_size=options.read_size(max_size), low_type=low_type,
        high_type=high_type, order=order, strict=strict, calib=calib, samples=samples, skip_bad=skip_bad, alpha=alpha,
        image_max_tokens=image_max_tokens,
        seed=seed, compute_type=compute_type, mmproj_type=mmproj_type, mmproj_layout=mmproj_layout,
        bundle=bundle, keep_parts=keep_parts, threads=threads, work=work, check_all=check_all,
        imatrix=tuple(imatrix or ()), min_tps=min_tps, profile=profile, evaluate=not no_eval,
        sequential=sequential,
        max_drop=options.read_share(max_drop),
    )  # fmt: skip
    if dry_run:
        _foresee(model, out, settings, as_json=as_json)
        return
    with show_progress() as progress:
        result = pipeline.convert(model, out, settings, progress)
    for note in result.report_notes:
        typer.echo(f"luq-gguf: mind: {note}", err=True)
    if as_json:
        _print_json(result.as_json())
    else:
        _print(format_conversion(result))


def _foresee(model: str, out: Path, settings: Settings, *, as_json: bool) -> None:
    """Print what a conversion would take; raises what it would refuse for, after that."""
    from luq_gguf.cli.dry_run import format_dry_run
    from luq_gguf.dry_run import foresee

    with show_progress() as progress:
        found = foresee(model, out, settings, progress)
    if as_json:
        _print_json(found.as_json())
    else:
        _print(format_dry_run(found))
    if found.refusal is not None:
        raise found.refusal


@app.command(rich_help_panel=STAGES)
def analyze(
    model: options.Model,
    out: options.Out,
    order: options.Order = "entropy",
    calib: options.Calib = None,
    samples: options.Samples = None,
    image_max_tokens: options.ImageMaxTokens = None,
    skip_bad: options.SkipBad = False,
    alpha: options.Alpha = 0.5,
    seed: options.Seed = 0,
    compute_type: options.ComputeType = "auto",
    threads: options.Threads = 0,
    work: options.Work = None,
    check_all: options.CheckAll = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Measure every layer's entropy and the importance matrix, without quantizing.

    Example: luq-gguf analyze Qwen/Qwen2.5-VL-7B-Instruct --out qwen-analysis --calib my-images.jsonl
    """
    from luq_gguf import pipeline
    from luq_gguf.cli.tables import format_floor, format_scores

    settings = pipeline.Settings(
        order=order, calib=calib, samples=samples, skip_bad=skip_bad, alpha=alpha,
        image_max_tokens=image_max_tokens, seed=seed,
        compute_type=compute_type, threads=threads, work=work, check_all=check_all,
    )  # fmt: skip
    with show_progress() as progress:
        scores = pipeline.analyze(model, out, settings, progress)
    if as_json:
        _print(scores.model_dump_json())
    else:
        _print(f"{format_scores(scores, order)}\n{format_floor(pipeline.floored_channels(out / pipeline.IMATRIX))}")


@app.command(rich_help_panel=STAGES)
def imatrix(
    folder: Annotated[Path, typer.Argument(help="The folder of an analysis or conversion.")],
    alpha: options.Alpha = 0.5,
    merge: options.Merge = None,
    debug: options.Debug = False,
) -> None:
    """Mix the importance matrix again at another ratio of image and text tokens, without a pass.

    Example: luq-gguf imatrix qwen-analysis --alpha 0.3 --merge code.dat
    """
    from luq_gguf import pipeline
    from luq_gguf.cli.tables import format_floor

    path = pipeline.remix_importance(folder, alpha, merge or ())
    _print(f"{format_floor(pipeline.floored_channels(path))}\nwrote {path} at alpha {alpha:g}")


@app.command(rich_help_panel=STAGES)
def plan(
    source: Annotated[str, typer.Argument(help="The folder of an analysis, or a model.")],
    low_layers: options.LowLayers = None,
    max_size: options.MaxSize = None,
    min_tps: options.MinTps = None,
    max_drop: options.MaxDrop = None,
    low_type: options.LowType = "IQ1_M",
    high_type: options.HighType = "Q4_K_M",
    order: options.Order = "entropy",
    strict: options.Strict = False,
    seed: options.Seed = 0,
    threads: options.Threads = 0,
    profile: options.ProfileFile = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Choose a type for every tensor; of a bare model: the size for every number of low layers.

    Example: luq-gguf plan qwen-analysis --max-size 3.4GiB
    """
    from luq_gguf import pipeline
    from luq_gguf.cli.tables import format_plan, format_sizes

    settings = pipeline.Settings(
        low_layers=low_layers, max_size=options.read_size(max_size), low_type=low_type,
        high_type=high_type, order=order, strict=strict, seed=seed, min_tps=min_tps, threads=threads, profile=profile,
        max_drop=options.read_share(max_drop),
    )  # fmt: skip
    if pipeline.is_analysis(source):
        with show_progress() as progress:
            made, forecast = pipeline.plan_from_analysis(Path(source), settings, progress)
        _print(made.model_dump_json() if as_json else format_plan(made, Path(source), forecast))
        return
    table = pipeline.size_table_of_model(source, settings)
    if as_json:
        _print_json(table.as_json())
    else:
        _print(format_sizes(table))


@app.command(rich_help_panel=STAGES)
def export(
    model: options.Model,
    out: options.Out,
    dtype: options.Dtype = "auto",
    mmproj_type: options.MmprojType = "f16",
    mmproj_layout: options.MmprojLayout = None,
    debug: options.Debug = False,
) -> None:
    """Write the 16-bit text GGUF and the mmproj, as llama.cpp's own converter would.

    Example: luq-gguf export Qwen/Qwen2.5-VL-7B-Instruct --out qwen-16bit
    """
    from luq_gguf import pipeline

    with show_progress() as progress:
        made = pipeline.export_model(model, out, dtype, mmproj_type, progress, mmproj_layout=mmproj_layout)
    for path in made.files:
        _print(f"wrote {path} ({path.stat().st_size:,} bytes)")
    if made.mmproj_layout:
        _print(f"vision part: laid out {made.mmproj_layout!r} (--mmproj-layout)")


@app.command(rich_help_panel=STAGES)
def quantize(
    source: Annotated[Path, typer.Argument(help="A 16-bit GGUF.")],
    plan_file: Annotated[Path, typer.Option("--plan", help="plan.json of that model.", rich_help_panel=options.METHOD)],
    imatrix_file: Annotated[
        Path,
        typer.Option(
            "--imatrix", help="Importance matrix of that model, GGUF or .dat.", rich_help_panel=options.METHOD
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The GGUF to write.", rich_help_panel=options.RESULTS)],
    threads: options.Threads = 0,
    debug: options.Debug = False,
) -> None:
    """Quantize an existing 16-bit GGUF by a plan.

    Example: luq-gguf quantize model-F16.gguf --plan plan.json --imatrix imatrix.gguf --out model-LUQ.gguf
    """
    from luq_gguf import pipeline

    with show_progress() as progress:
        pipeline.quantize_file(source, plan_file, imatrix_file, out, threads, progress)
    _print(f"wrote {out} ({out.stat().st_size:,} bytes)")


@app.command(rich_help_panel=JUDGE)
def verify(
    file: Annotated[Path, typer.Argument(help="A GGUF, or the folder of a conversion.")],
    plan_file: Annotated[
        Path | None,
        typer.Option("--plan", help="The plan a GGUF was made by.", show_default=False, rich_help_panel=options.RUN),
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Reread a GGUF against its plan, or a whole folder against its manifest; exit 1 and a list where it differs.

    Of a folder every hash is checked, the plan is made again, and the model is reread against it.

    Example: luq-gguf verify qwen
    """
    from luq_gguf.artifacts import Plan, read_record
    from luq_gguf.audit import audit_folder
    from luq_gguf.verify import verify_types

    if plan_file is None:
        if not file.is_dir():
            raise typer.BadParameter("give the plan of a GGUF with --plan, or the folder of a conversion")
        with show_progress() as progress:
            differences = audit_folder(file, progress)
    else:
        differences = verify_types(file, read_record(plan_file, Plan))
    for difference in differences:
        _print(difference)
    if differences:
        raise typer.Exit(1)
    _print(f"{file} is what {plan_file or 'its manifest'} says")


@app.command(rich_help_panel=JUDGE)
def ask(
    model: Annotated[Path, typer.Argument(help="A text GGUF or a bundle.")],
    question: Annotated[str, typer.Argument(help="What to ask.")],
    mmproj: Annotated[
        Path | None,
        typer.Option(
            "--mmproj",
            help="Its vision part; a bundle brings its own.",
            show_default=False,
            rich_help_panel=options.RUN,
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option("--image", help="The image to ask about.", show_default=False, rich_help_panel=options.RUN),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Stop after so many tokens.", rich_help_panel=options.RUN)
    ] = 256,
    context: Annotated[
        int, typer.Option("--context", min=64, help="Context size in tokens.", rich_help_panel=options.RUN)
    ] = 4096,
    threads: options.Threads = 0,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Ask a model about an image through llama.cpp; the answer is greedy, so it can be repeated.

    Example: luq-gguf ask model-LUQ.gguf --mmproj mmproj-model-F16.gguf --image photo.jpg "What is this?"
    """
    from luq_gguf.images import load_image
    from luq_gguf.runtime import Runtime

    picture = load_image(image) if image is not None else None
    with Runtime(model, mmproj, threads=threads, context=context) as runtime:
        if runtime.doubt is not None:
            typer.echo(f"luq-gguf: mind: {runtime.doubt}", err=True)
        answer = runtime.answer(question, picture, max_tokens=max_tokens)
    if as_json:
        _print_json({"question": question, "answer": answer})
    else:
        _print(answer)


@app.command(rich_help_panel=MAKE)
def bundle(
    model: Annotated[Path, typer.Argument(help="A text GGUF.")],
    mmproj: Annotated[Path, typer.Argument(help="Its vision part.")],
    out: Annotated[Path, typer.Option("--out", help="The file to write.", rich_help_panel=options.RESULTS)],
    debug: options.Debug = False,
) -> None:
    """Put a text GGUF and its vision part into one file that llama.cpp loads as the text model.

    Example: luq-gguf bundle model-LUQ.gguf mmproj-model-F16.gguf --out model-LUQ-bundle.gguf
    """
    from luq_gguf.bundle import bundle as join

    join(model, mmproj, out)
    _print(f"wrote {out} ({out.stat().st_size:,} bytes)")


@app.command(rich_help_panel=MAKE)
def unbundle(
    file: Annotated[Path, typer.Argument(help="A bundle.")],
    out: options.Out,
    debug: options.Debug = False,
) -> None:
    """Take a bundle apart, for frontends that want the vision part as a file.

    Example: luq-gguf unbundle model-LUQ-bundle.gguf --out model
    """
    from luq_gguf.bundle import unbundle as split

    for path in split(file, out):
        _print(f"wrote {path} ({path.stat().st_size:,} bytes)")


@app.command(rich_help_panel=MAKE)
def demo(
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the demo's files.", rich_help_panel=options.RESULTS)
    ] = Path("demo-output"),
    threads: options.Threads = 0,
    debug: options.Debug = False,
) -> None:
    """Convert the embedded model, then ask the 16-bit and the small file about pictures, side by side.

    Example: luq-gguf demo
    """
    from luq_gguf.demo.show import run_demo

    with show_progress() as progress:
        shown = run_demo(out, threads, progress)
    _print(shown)
