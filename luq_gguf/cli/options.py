"""The options that commands share, documented once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from luq_gguf.amounts import parse_share, parse_size
from luq_gguf.cli import completion
from luq_gguf.errors import RequestError

AmountT = TypeVar("AmountT", int, float)
RESULTS, BUDGET, METHOD, CALIBRATION, RUN = "Results", "Budget", "Method", "Calibration", "Run"
MEASUREMENT = "Measurement"
"""The groups in which a command's help shows its options."""


def read_size(text: str | None) -> int | None:
    """The bytes that an option says, None where it was not given; raises typer.BadParameter."""
    return _read(parse_size, text)


def read_share(text: str | None) -> float | None:
    """The share that an option says, None where it was not given; raises typer.BadParameter."""
    return _read(parse_share, text)


def _read(parse: Callable[[str], AmountT], text: str | None) -> AmountT | None:
    try:
        return None if text is None else parse(text)
    except RequestError as error:
        raise typer.BadParameter(str(error)) from error


Model = Annotated[str, typer.Argument(help="A folder with a Hugging Face checkpoint, or a hub id.", show_default=False)]
Out = Annotated[
    Path, typer.Option("--out", help="Folder for the results; made if it does not exist.", rich_help_panel=RESULTS)
]

LowLayers = Annotated[
    int | None,
    typer.Option("--low-layers", min=0, help="So many layers get the low type.", rich_help_panel=BUDGET),
]
MaxSize = Annotated[
    str | None,
    typer.Option("--max-size", help="The text GGUF is at most so large: 3.4GiB, 900MB, bytes.", rich_help_panel=BUDGET),
]

MaxDrop = Annotated[
    str | None,
    typer.Option("--max-drop", help="The smallest file that says something else than the 16-bit model in at most so "
                 "many answer tokens, 10%; measured on the held-out samples.", show_default=False,
                 rich_help_panel=BUDGET),
]  # fmt: skip
MinTps = Annotated[
    float | None,
    typer.Option("--min-tps", help="The gentlest plan predicted to generate so many tokens/s on this CPU; measured "
                 "afterwards.", show_default=False, rich_help_panel=BUDGET),
]  # fmt: skip
ProfileFile = Annotated[
    Path | None,
    typer.Option("--profile", help="Predict speeds by this profile of `luq-gguf profile`; default: this CPU's.",
                 show_default=False, rich_help_panel=RUN),
]  # fmt: skip
LowType = Annotated[
    str,
    typer.Option("--low-type", help="Type of the low layers' seven weights.", autocompletion=completion.low_types,
                 rich_help_panel=METHOD),
]  # fmt: skip
HighType = Annotated[
    str,
    typer.Option("--high-type", help="What everything else is quantized as.", autocompletion=completion.high_types,
                 rich_help_panel=METHOD),
]  # fmt: skip
Order = Annotated[
    str,
    typer.Option(
        "--order",
        help="Which layers become low first: entropy (of the output), entropy-input, depth, reverse, random, cosine, "
        "change, damage (measured); mix gives every group of tensors a type of its own, by predicted damage.",
        autocompletion=completion.orders,
        rich_help_panel=METHOD,
    ),
]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="A row that the low type cannot take is an error.", rich_help_panel=METHOD),
]
Calib = Annotated[
    str | None,
    typer.Option(
        "--calib",
        help="JSONL, LLaVA's JSON, TSV, parquet, a folder of images, or a shipped set: general, shapes.",
        show_default=False,
        autocompletion=completion.calibration_sets,
        rich_help_panel=CALIBRATION,
    ),
]
Samples = Annotated[
    int | None,
    typer.Option("--samples", min=1, help="Take a seeded subset of so many samples.", rich_help_panel=CALIBRATION),
]
ImageMaxTokens = Annotated[
    int | None,
    typer.Option("--image-max-tokens", help="Larger calibration images are made smaller; bounds the cost.",
                 show_default=False, rich_help_panel=CALIBRATION),
]  # fmt: skip
SkipBad = Annotated[
    bool,
    typer.Option("--skip-bad", help="Leave out samples that cannot be read, and say how many.",
                 rich_help_panel=CALIBRATION),
]  # fmt: skip
Alpha = Annotated[
    float,
    typer.Option("--alpha", min=0.0, max=1.0, help="Share of image+text tokens in the importance matrix.",
                 rich_help_panel=CALIBRATION),
]  # fmt: skip
Imatrix = Annotated[
    list[Path] | None,
    typer.Option("--imatrix", help="Take this importance matrix (GGUF or .dat) instead of the measured one; several "
                 "are merged.", show_default=False, rich_help_panel=CALIBRATION),
]  # fmt: skip
Merge = Annotated[
    list[Path] | None,
    typer.Option("--merge", help="Add this importance matrix (GGUF or .dat); may be given again.", show_default=False,
                 rich_help_panel=CALIBRATION),
]  # fmt: skip
Seed = Annotated[int, typer.Option("--seed", help="Seed of every random choice.", rich_help_panel=METHOD)]
ComputeType = Annotated[
    str,
    typer.Option("--compute-type", help="Type of the analysis pass: auto (the faster one here), bf16, f32.",
                 autocompletion=completion.compute_types, rich_help_panel=METHOD),
]  # fmt: skip

MmprojType = Annotated[
    str,
    typer.Option("--mmproj-type", help="Type of the vision part: f16, bf16, f32.",
                 autocompletion=completion.mmproj_types, rich_help_panel=RESULTS),
]  # fmt: skip
MmprojLayout = Annotated[
    str | None,
    typer.Option("--mmproj-layout", help="LLaVA-1.5: exact (default), no-class, standard; see the README.",
                 show_default=False, autocompletion=completion.layouts, rich_help_panel=RESULTS),
]  # fmt: skip
Dtype = Annotated[
    str,
    typer.Option("--dtype", help="16-bit type: auto (bf16 where the checkpoint is), f16, bf16, f32.",
                 autocompletion=completion.dtypes, rich_help_panel=RESULTS),
]  # fmt: skip
Threads = Annotated[
    int, typer.Option("--threads", min=0, help="Threads; 0 takes one for each core.", rich_help_panel=RUN)
]
Work = Annotated[
    Path | None,
    typer.Option("--work", help="Folder for what later runs reuse; default: .work in --out.", show_default=False,
                 rich_help_panel=RUN),
]  # fmt: skip
CheckAll = Annotated[
    bool,
    typer.Option("--check-all", help="Hash every byte of the checkpoint; else sizes and times of change tell.",
                 rich_help_panel=RUN),
]  # fmt: skip
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.", rich_help_panel=RESULTS)]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=RUN)]
