"""Puts quantized parts together into the text GGUF of a plan, by copying bytes.

Takes parts, the header of the 16-bit file and a plan; gives a file with the bytes that llama.cpp's quantizer
would write in one run over the whole model: its order of tensors and metadata, its padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gguf.constants import GGML_QUANT_VERSION, GGMLQuantizationType, Keys

from luq_gguf import TOOL
from luq_gguf.artifacts import Plan, atomic_path, require_space
from luq_gguf.errors import ArtifactError
from luq_gguf.gguf_file import GGUFFile, GGUFTensor, align, encode_header, raw_value, tensor_bytes, write_padding
from luq_gguf.importance import ImatrixNote
from luq_gguf.planning import tensor_order
from luq_gguf.progress import Progress, silent
from luq_gguf.type_names import parse_high_type

COPY_BYTES = 1 << 22
_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")


@dataclass(frozen=True)
class Blueprint:
    """The file of a plan before any tensor is in it: its header, and where every tensor will lie, in their order.

    `base` is the header of the 16-bit file, whose metadata it has, with what quantizing adds.
    """

    base: Path
    header: bytes
    tensors: dict[str, GGUFTensor]

    @classmethod
    def draw(cls, base_header: Path, plan: Plan, imatrix: ImatrixNote | None = None) -> Blueprint:
        """The blueprint of a plan; raises ArtifactError where the header is of another model."""
        base = GGUFFile.open(base_header)
        if plan.types.keys() != base.tensors.keys():
            raise ArtifactError(
                f"the plan is of {len(plan.types)} tensors, the header of {len(base.tensors)}",
                path=base_header,
                hint="take a plan of this model",
            )
        types = {name: GGMLQuantizationType[kind] for name, kind in plan.types.items()}
        header = _encode(base, types, plan.high_type, imatrix)
        tensors: dict[str, GGUFTensor] = {}
        end = len(header)
        for name in tensor_order(types):
            shape = base.tensors[name].shape
            tensors[name] = GGUFTensor(name, shape, types[name], end, tensor_bytes(types[name], shape))
            end = place_of(tensors[name]).stop
        return cls(base_header, header, tensors)

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole file."""
        return max((place_of(tensor).stop for tensor in self.tensors.values()), default=len(self.header))

    def require_size(self, plan: Plan, target: Path) -> None:
        """Raise ArtifactError unless the file has the bytes that its plan says."""
        if self.size_bytes != plan.size_bytes:
            raise ArtifactError(
                f"{target.name} comes to {self.size_bytes:,} bytes, its plan says {plan.size_bytes:,}",
                path=target,
                hint="make the plan again",
            )

    def find(self, parts: Sequence[Path], names: Iterable[str]) -> list[tuple[Path, GGUFTensor]]:
        """Each named tensor, in the order of the file, with the part that holds it.

        Raises ArtifactError where one is missing from the parts, or of another type or shape.
        """
        held = {tensor.name: (part, tensor) for part in parts for tensor in GGUFFile.open(part).tensors.values()}
        return [self._check(held, name) for name in tensor_order(names)]

    def _check(self, held: Mapping[str, tuple[Path, GGUFTensor]], name: str) -> tuple[Path, GGUFTensor]:
        if name not in held:
            raise ArtifactError(f"no part holds {name}", path=self.base, hint="quantize the missing layer again")
        part, found = held[name]
        wanted = self.tensors[name]
        if (found.type, found.shape) != (wanted.type, wanted.shape):
            raise ArtifactError(
                f"{part} has {name} as {found.type.name} {found.shape}, wanted is {wanted.type.name} {wanted.shape}",
                path=part,
                hint="delete this part",
            )
        return part, found

    def copy(self, found: Sequence[tuple[Path, GGUFTensor]], target: BinaryIO, progress: Progress, done: int) -> int:
        """Copy tensors of parts to their places in a file that has `done` bytes of tensors; returns what it has now."""
        total = sum(tensor.nbytes for tensor in self.tensors.values())
        for part, tensor in found:
            target.seek(self.tensors[tensor.name].offset)
            with part.open("rb") as source:
                source.seek(tensor.offset)
                _copy(source, target, tensor.nbytes)
            write_padding(target)
            done += tensor.nbytes
            progress("assemble", done, total)
        return done


def place_of(tensor: GGUFTensor) -> range:
    """The bytes of a file that a tensor takes, with the padding that follows."""
    return range(tensor.offset, align(tensor.offset + tensor.nbytes))


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
    blueprint = Blueprint.draw(base_header, plan, imatrix)
    found = blueprint.find(parts, plan.types)
    require_space(target.parent, plan.size_bytes, f"writing {target.name}")
    blueprint.require_size(plan, target)
    with atomic_path(target) as partial, partial.open("wb") as handle:
        handle.write(blueprint.header)
        blueprint.copy(found, handle, progress, 0)


def header_bytes(base: GGUFFile, high_type: str, imatrix: ImatrixNote | None) -> int:
    """Size of the final file's header with its padding; what `plan.make_plan` wants to know.

    `base` is the header of the 16-bit file; the types of the tensors do not matter to the size.
    """
    return len(_encode(base, {name: tensor.type for name, tensor in base.tensors.items()}, high_type, imatrix))


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


def _copy(source: BinaryIO, target: BinaryIO, count: int) -> None:
    while count:
        block = source.read(min(count, COPY_BYTES))
        if not block:
            raise ArtifactError(f"{source.name} was cut while it was read", path=Path(source.name))
        target.write(block)
        count -= len(block)
