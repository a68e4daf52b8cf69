"""The options that commands share, documented once, and the parsing of their values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str) -> int:
    """Bytes of a size such as 3.4GiB, 900MB or 12345; raises typer.BadParameter otherwise."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise typer.BadParameter(f"{text!r} is no size; write for example 3.4GiB, 900MB or a number of bytes")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def parse_share(text: str) -> float:
    """The share that 10% or 0.1 says; raises typer.BadParameter otherwise."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is no share; write for example 10% or 0.1")
    return float(match[1]) / (100 if match[2] else 1)


Model = Annotated[str, typer.Argument(help="A folder with a Hugging Face checkpoint, or a hub id.", show_default=False)]
Out = Annotated[Path, typer.Option("--out", help="Folder for the results; made if it does not exist.")]

LowLayers = Annotated[
    int | None,
    typer.Option("--low-layers", min=0, help="So many layers get the low type.", rich_help_panel="Budget"),
]
MaxSize = Annotated[
    str | None,
    typer.Option(
        "--max-size", help="The text GGUF is at most so large: 3.4GiB, 900MB, bytes.", rich_help_panel="Budget"
    ),
]

MaxDrop = Annotated[
    str | None,
    typer.Option("--max-drop", help="The smallest file that says something else than the 16-bit model in at most so "
                 "many answer tokens, 10%; measured on the held-out samples.", show_default=False,
                 rich_help_panel="Budget"),
]  # fmt: skip
MinTps = Annotated[
    float | None,
    typer.Option("--min-tps", help="The gentlest plan predicted to generate so many tokens/s on this CPU; measured "
                 "afterwards.", show_default=False, rich_help_panel="Budget"),
]  # fmt: skip
ProfileFile = Annotated[
    Path | None,
    typer.Option("--profile", help="Predict speeds by this profile of `luq-gguf profile`; default: this CPU's.",
                 show_default=False, rich_help_panel="Run"),
]  # fmt: skip
LowType = Annotated[
    str, typer.Option("--low-type", help="Type of the low layers' seven weights.", rich_help_panel="Method")
]
HighType = Annotated[
    str, typer.Option("--high-type", help="What everything else is quantized as.", rich_help_panel="Method")
]
Order = Annotated[
    str,
    typer.Option(
        "--order",
        help="Which layers become low first: entropy (of the output), entropy-input, depth, reverse, random, cosine, "
        "change, damage (measured); mix gives every group of tensors a type of its own, by predicted damage.",
        rich_help_panel="Method",
    ),
]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="A row that the low type cannot take is an error.", rich_help_panel="Method"),
]
Calib = Annotated[
    str | None,
    typer.Option(
        "--calib",
        help="JSONL, LLaVA's JSON, TSV, parquet, a folder of images, or a shipped set: general, shapes.",
        show_default=False,
        rich_help_panel="Method",
    ),
]
Samples = Annotated[
    int | None,
    typer.Option("--samples", min=1, help="Take a seeded subset of so many samples.", rich_help_panel="Method"),
]
ImageMaxTokens = Annotated[
    int | None,
    typer.Option("--image-max-tokens", help="Larger calibration images are made smaller; bounds the cost.",
                 show_default=False, rich_help_panel="Method"),
]  # fmt: skip
SkipBad = Annotated[
    bool,
    typer.Option("--skip-bad", help="Leave out samples that cannot be read, and say how many.",
                 rich_help_panel="Method"),
]  # fmt: skip
Alpha = Annotated[
    float,
    typer.Option("--alpha", min=0.0, max=1.0, help="Share of image+text tokens in the importance matrix.",
                 rich_help_panel="Method"),
]  # fmt: skip
Imatrix = Annotated[
    list[Path] | None,
    typer.Option("--imatrix", help="Take this importance matrix (GGUF or .dat) instead of the measured one; several "
                 "are merged.", show_default=False, rich_help_panel="Method"),
]  # fmt: skip
Merge = Annotated[
    list[Path] | None,
    typer.Option("--merge", help="Add this importance matrix (GGUF or .dat); may be given again.", show_default=False),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of every random choice.", rich_help_panel="Method")]
ComputeType = Annotated[
    str,
    typer.Option("--compute-type", help="Type of the analysis pass: auto, bf16, f32.", rich_help_panel="Method"),
]

MmprojType = Annotated[
    str, typer.Option("--mmproj-type", help="Type of the vision part: f16, bf16, f32.", rich_help_panel="Run")
]
MmprojLayout = Annotated[
    str | None,
    typer.Option("--mmproj-layout", help="LLaVA-1.5: exact (default), no-class, standard; see the README.",
                 show_default=False, rich_help_panel="Run"),
]  # fmt: skip
Dtype = Annotated[
    str, typer.Option("--dtype", help="16-bit type: auto (bf16 where the checkpoint is), f16, bf16, f32.")
]
Threads = Annotated[
    int, typer.Option("--threads", min=0, help="Threads; 0 takes one for each core.", rich_help_panel="Run")
]
Work = Annotated[
    Path | None,
    typer.Option("--work", help="Folder for what later runs reuse; default: .work in --out.", show_default=False,
                 rich_help_panel="Run"),
]  # fmt: skip
CheckAll = Annotated[
    bool,
    typer.Option("--check-all", help="Hash every byte of the checkpoint; else sizes and times of change tell.",
                 rich_help_panel="Run"),
]  # fmt: skip
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.", rich_help_panel="Run")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel="Run")]
