"""Rereads a written GGUF and says in what it differs from its plan.

Takes a path and a plan; a file that is no sound GGUF at all is a GGUFError, everything else a line of text.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from luq_gguf.artifacts import Plan
from luq_gguf.errors import ArtifactError
from luq_gguf.gguf_file import GGUFFile, align


def verify_types(path: Path, plan: Plan, *, header: GGUFFile | None = None) -> list[str]:
    """The differences between a file and its plan, a line each; empty when there are none.

    With `header`, that of the 16-bit file, shapes are held against it too. Raises GGUFError where the file is
    cut or contradicts itself.
    """
    found = GGUFFile.open(path)
    return [*_tensor_differences(found, plan, header), *_layout_differences(found, plan)]


def require_plan_of(source: Path, plan: Plan, plan_file: Path) -> None:
    """Raise ArtifactError unless a plan names exactly the tensors of a GGUF."""
    found = GGUFFile.open(source).tensors
    others = sorted(found.keys() ^ plan.types.keys())
    if others:
        place = f"only in {source}" if others[0] in found else f"not in {source}"
        raise ArtifactError(
            f"{plan_file} is of another model: {others[0]} is {place}", path=plan_file, hint="take this model's plan"
        )


def _tensor_differences(found: GGUFFile, plan: Plan, header: GGUFFile | None) -> Iterator[str]:
    for name, kind in plan.types.items():
        tensor = found.tensors.get(name)
        if tensor is None:
            yield f"{name} is missing"
        elif tensor.type.name != kind:
            yield f"{name} is {tensor.type.name}, the plan says {kind}"
        elif header is not None and name in header.tensors and tensor.shape != header.tensors[name].shape:
            yield f"{name} has the shape {tensor.shape}, the model's is {header.tensors[name].shape}"
    for name in found.tensors.keys() - plan.types.keys():
        yield f"{name} is not in the plan"


def _layout_differences(found: GGUFFile, plan: Plan) -> Iterator[str]:
    """llama.cpp wants tensors in the order of the header, each right after the padding of the one before."""
    expected = found.data_start
    for tensor in found.tensors.values():
        if tensor.offset != expected:
            yield f"{tensor.name} lies at byte {tensor.offset:,}, expected at {expected:,}"
        expected = align(tensor.offset + tensor.nbytes, found.alignment)
    if found.data_end != plan.size_bytes:
        yield f"the text model ends at byte {found.data_end:,}, the plan says {plan.size_bytes:,}"
    if found.size < plan.size_bytes:
        yield f"the file has {found.size:,} bytes, the plan says {plan.size_bytes:,}"
