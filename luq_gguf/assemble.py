"""Puts quantized parts together into the text GGUF of a plan, by copying bytes.

Takes parts, the header of the 16-bit file and a plan; gives a file with the bytes that llama.cpp's quantizer
would write in one run over the whole model: its order of tensors and metadata, its padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from gguf.constants import GGML_QUANT_VERSION, GGMLQuantizationType, Keys

from luq_gguf import TOOL
from luq_gguf.artifacts import Plan, atomic_path, require_space
from luq_gguf.errors import ArtifactError
from luq_gguf.gguf_file import GGUFFile, GGUFTensor, encode_header, raw_value, write_padding
from luq_gguf.importance import ImatrixNote
from luq_gguf.plan import tensor_order
from luq_gguf.progress import Progress, silent
from luq_gguf.type_names import parse_high_type

COPY_BYTES = 1 << 22
_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")


def assemble(
    parts: Sequence[Path],
    base_header: Path,
    plan: Plan,
    target: Path,
    *,
    imatrix: ImatrixNote | None = None,
    progress: Progress = silent,
) -> None:
    """Write `target` from `parts`; the metadata are those of `base_header`, with what quantizing adds.

    Raises ArtifactError where a tensor is missing from the parts or of another type or shape than the plan
    and the header say, DiskSpaceError where the file would not fit.
    """
    base = GGUFFile.open(base_header)
    found = _find_tensors(parts, base, plan)
    header = _header(base, plan, imatrix)
    require_space(target.parent, plan.size_bytes, f"writing {target.name}")
    with atomic_path(target) as partial:
        with partial.open("wb") as handle:
            handle.write(header)
            _copy_tensors(handle, found, progress)
        written = partial.stat().st_size
        if written != plan.size_bytes:
            raise ArtifactError(
                f"{target.name} came to {written:,} bytes, its plan says {plan.size_bytes:,}",
                path=target,
                hint="make the plan again",
            )


def header_bytes(base: GGUFFile, high_type: str, imatrix: ImatrixNote | None) -> int:
    """Size of the final file's header with its padding; what `plan.make_plan` wants to know.

    `base` is the header of the 16-bit file; the types of the tensors do not matter to the size.
    """
    return len(_encode(base, {name: tensor.type for name, tensor in base.tensors.items()}, high_type, imatrix))


def _header(base: GGUFFile, plan: Plan, imatrix: ImatrixNote | None) -> bytes:
    types = {name: GGMLQuantizationType[kind] for name, kind in plan.types.items()}
    return _encode(base, types, plan.high_type, imatrix)


def _encode(
    base: GGUFFile, types: Mapping[str, GGMLQuantizationType], high_type: str, imatrix: ImatrixNote | None
) -> bytes:
    entries = final_metadata(base, high_type, imatrix)
    names = tensor_order(base.tensors)
    return encode_header(entries, ((name, base.tensors[name].shape, types[name]) for name in names))


def final_metadata(base: GGUFFile, high_type: str, imatrix: ImatrixNote | None) -> dict[str, bytes]:
    """Raw metadata of the quantized file, in the order of llama.cpp's quantizer: what it sets comes last.

    `general.quantized_by` is ours, the others are those of llama-quantize.
    """
    added: dict[str, int | str] = {
        "general.quantization_version": GGML_QUANT_VERSION,
        "general.file_type": int(parse_high_type(high_type)),
        Keys.General.QUANTIZED_BY: TOOL,
        **dict(imatrix.pairs() if imatrix else ()),
    }
    kept = (key for key in base.metadata if key not in added and key not in _SPLIT_KEYS)
    return {key: base.metadata.raw(key) for key in kept} | {key: raw_value(value) for key, value in added.items()}


def _find_tensors(parts: Sequence[Path], base: GGUFFile, plan: Plan) -> list[tuple[Path, GGUFTensor]]:
    """Every tensor of the file in its order, with the part that holds it."""
    if plan.types.keys() != base.tensors.keys():
        raise ArtifactError(
            f"the plan is of {len(plan.types)} tensors, the header of {len(base.tensors)}",
            path=base.path,
            hint="take a plan of this model",
        )
    held = {tensor.name: (part, tensor) for part in parts for tensor in GGUFFile.open(part).tensors.values()}
    return [_check(held, name, base, plan) for name in tensor_order(plan.types)]


def _check(
    held: Mapping[str, tuple[Path, GGUFTensor]], name: str, base: GGUFFile, plan: Plan
) -> tuple[Path, GGUFTensor]:
    if name not in held:
        raise ArtifactError(f"no part holds {name}", path=base.path, hint="quantize the missing layer again")
    part, tensor = held[name]
    if tensor.type.name != plan.types[name] or tensor.shape != base.tensors[name].shape:
        raise ArtifactError(
            f"{part} has {name} as {tensor.type.name} {tensor.shape}, wanted is {plan.types[name]} "
            f"{base.tensors[name].shape}",
            path=part,
            hint="delete this part",
        )
    return part, tensor


def _copy_tensors(target: BinaryIO, found: Sequence[tuple[Path, GGUFTensor]], progress: Progress) -> None:
    total, done = sum(tensor.nbytes for _, tensor in found), 0
    for part, tensor in found:
        with part.open("rb") as source:
            source.seek(tensor.offset)
            _copy(source, target, tensor.nbytes)
        write_padding(target)
        done += tensor.nbytes
        progress("assemble", done, total)


def _copy(source: BinaryIO, target: BinaryIO, count: int) -> None:
    while count:
        block = source.read(min(count, COPY_BYTES))
        if not block:
            raise ArtifactError(f"{source.name} was cut while it was read", path=Path(source.name))
        target.write(block)
        count -= len(block)
