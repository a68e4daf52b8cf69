"""What a plan needs to know of a model before anything is measured: its tensors, their types, its header.

Takes a checkpoint's headers, or its config.json alone; asks llama.cpp for types by a dry run on a file
whose data are a hole. Knows nothing of scores.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Literal

from gguf.constants import GGMLQuantizationType
from pydantic import Field

from luq_gguf.artifacts import MAX_LAYERS, Plan, Record, read_record, scratch_folder, write_record
from luq_gguf.assemble import header_bytes
from luq_gguf.checkpoint import Checkpoint, read_config
from luq_gguf.errors import ArtifactError
from luq_gguf.evidence import group_of
from luq_gguf.export import write_header_only
from luq_gguf.families import find_family
from luq_gguf.families.base import Family
from luq_gguf.gguf_file import GGUFFile
from luq_gguf.importance import ImatrixNote
from luq_gguf.job import HEADER, IMATRIX, MODEL, Job, Settings
from luq_gguf.planning import (
    MIX,
    MIXED,
    Budget,
    PlanInputs,
    TensorSpec,
    layer_of,
    make_mixed_plan,
    make_plan,
    size_table,
    type_size,
)
from luq_gguf.quantize import resolve_types, tensor_specs
from luq_gguf.quantizer import Quantizer
from luq_gguf.small_files import MIB, read_small
from luq_gguf.type_names import UNQUANTIZED

MOST_HEADER = 256 * MIB
"""Of header.bin; most of it is the vocabulary."""


@dataclass(frozen=True)
class Layout:
    """A model's tensors with the types they may get, and the size of the final file's header in bytes."""

    checkpoint: str
    specs: tuple[TensorSpec, ...]
    header_bytes: int
    inputs: PlanInputs

    def plan(self, order: Sequence[int], order_name: str, budget: Budget, *, strict: bool) -> Plan:
        """The plan of this model for an order of its layers and a budget."""
        named = replace(self.inputs, order_name=order_name)
        return make_plan(self.specs, self.header_bytes, order, budget, named, strict=strict)

    def mixed_plan(self, layers: int, types: Mapping[str, GGMLQuantizationType]) -> Plan:
        """The plan of this model with types of their own for some tensors."""
        named = replace(self.inputs, order_name=MIX)
        return make_mixed_plan(self.specs, self.header_bytes, layers, types, named)

    def sizes(self, order: Sequence[int]) -> tuple[int, ...]:
        """Bytes of the file with the first 0, 1, ... all layers of `order` low."""
        return size_table(self.specs, self.header_bytes, order)

    @property
    def weights(self) -> int:
        """How many numbers its tensors hold."""
        return sum(prod(spec.shape) for spec in self.specs)

    def layer_bytes(self, plan: Plan) -> tuple[int, ...]:
        """Bytes of each layer's tensors in a plan's file, without padding."""
        sizes = [0] * plan.layers
        for spec in self.specs:
            if spec.layer is not None:
                kind = spec.low if spec.layer in plan.low_layers else spec.high
                sizes[spec.layer] += type_size(kind, spec.shape)
        return tuple(sizes)

    def fallback_notes(self) -> list[str]:
        """What the weights become whose rows cannot take the types asked for, a line for each kind of weight."""
        found: dict[str, tuple[int, set[str], set[str]]] = {}
        for spec in self.specs:
            high = {kind.name for name, kind in self.inputs.high_fallbacks.items() if name == spec.name}
            low = {spec.low.name} - {self.inputs.low_type} if spec.layer is not None and spec.quantizable else set()
            if high or low:
                kind = spec.name.rpartition(".")[0].rpartition(".")[2]
                _, highs, lows = found.get(kind, (0, set(), set()))
                found[kind] = (spec.shape[0], highs | high, lows | low)
        return [
            f"{kind}: rows of {row:,} do not fill the blocks of these types; llama.cpp makes them "
            f"{_any_of(highs)} in high layers, {_any_of(lows)} in low ones, and the sizes count that"
            for kind, (row, highs, lows) in found.items()
        ]

    def surely_quantized(self) -> list[str]:
        """The layers' weights that every plan of this model quantizes."""
        rows = (spec for spec in self.specs if spec.layer is not None and spec.quantizable)
        return [spec.name for spec in rows if not UNQUANTIZED & {spec.high.name, spec.low.name}]

    def largest_step(self) -> int:
        """Bytes that making a part takes at most: its tensors in 16 bits, a layer's or all outside, and quantized."""
        sizes: dict[int | None, int] = {}
        for spec in self.specs:
            quantized = max(spec.bytes_as(spec.high), spec.bytes_as(spec.low))
            sizes[spec.layer] = sizes.get(spec.layer, 0) + spec.bytes_as(spec.source) + quantized
        return max(sizes.values())


def _any_of(kinds: set[str]) -> str:
    return " or ".join(sorted(kinds)) or "what was asked for"


class ModelRecord(Record):
    """`model.json` of an analysis: which model it is of, so that plans can be made without the checkpoint."""

    format: Literal["luq-gguf model 1"] = "luq-gguf model 1"
    checkpoint: str
    name: str
    layers: int = Field(ge=1, le=MAX_LAYERS)
    source_bytes: int = Field(ge=1)
    dataset: str


def predicted_note(dataset: str) -> ImatrixNote:
    """What the final file will say of its importance matrix; the numbers do not change its length."""
    return ImatrixNote("imatrix.gguf", dataset, 1, 1)


def lay_out(digest: str, header: Path, settings: Settings, dataset: str, quantizer: Quantizer | None = None) -> Layout:
    """The layout of the 16-bit GGUF whose header stands in `header`, its data a hole."""
    base = GGUFFile.open(header)
    resolved = resolve_types(header, settings.high_type, settings.low_type, quantizer=quantizer)
    inputs = PlanInputs(
        digest, settings.high_type.upper(), settings.low_type.upper(), "", resolved.high_fallbacks, base.data_end
    )
    size = header_bytes(base, settings.high_type, predicted_note(dataset))
    return Layout(digest, tuple(tensor_specs(base, resolved)), size, inputs)


def write_header(job: Job, folder: Path) -> Path:
    """The header of the model's 16-bit GGUF, its data a hole, in `folder`."""
    path = folder / HEADER
    write_header_only(job.checkpoint, job.family, path, dtype=job.dtype)
    return path


def keep_header(job: Job, header: Path, dataset: str) -> None:
    """Keep what planning needs beside an analysis: the header without its hole, and `model.json`."""
    base = GGUFFile.open(header)
    with header.open("r+b") as handle:
        handle.truncate(base.data_start)
    header.replace(job.out / HEADER)
    record = ModelRecord(
        checkpoint=job.checkpoint.digest, name=job.name, layers=job.family.layers, source_bytes=base.size,
        dataset=dataset,
    )  # fmt: skip
    write_record(job.out / MODEL, record)


def kept_layout(folder: Path, settings: Settings) -> tuple[ModelRecord, Layout]:
    """The layout of an analyzed model, from what `keep_header` left in its folder."""
    if not (folder / MODEL).is_file():
        raise ArtifactError(
            f"{folder} holds no {MODEL}", path=folder / MODEL, hint="give a folder of `luq-gguf analyze`, or the model"
        )
    record = read_record(folder / MODEL, ModelRecord)
    with scratch_folder(folder, "header") as scratch:
        header = scratch / HEADER
        try:
            header.write_bytes(read_small(folder / HEADER, MOST_HEADER))
        except OSError as error:
            raise ArtifactError(
                f"cannot read {folder / HEADER}: {error.strerror}", path=folder / HEADER, hint="analyze the model again"
            ) from error
        if GGUFFile.open(folder / HEADER, header_only=True).data_end != record.source_bytes:
            raise ArtifactError(
                f"{folder / MODEL} is of another model than {folder / HEADER}", path=folder / MODEL,
                hint="analyze the model again",
            )  # fmt: skip
        with header.open("r+b") as handle:
            handle.truncate(record.source_bytes)
        matrix = folder / IMATRIX
        dataset = ImatrixNote.of(matrix).dataset if matrix.is_file() else record.dataset
        return record, lay_out(record.checkpoint, header, settings, dataset)


def layout_of_config(folder: Path, settings: Settings, dataset: str) -> tuple[Family, Layout, bool]:
    """The layout of a model of which only config.json need be there; the last says whether its tokenizer is."""
    checkpoint = Checkpoint(folder, read_config(folder), {}, "")
    family = find_family(checkpoint.config)
    has_tokenizer = checkpoint.side_file("tokenizer.json") is not None
    if has_tokenizer:
        family.read_tokenizer_kind(checkpoint)
    with tempfile.TemporaryDirectory(prefix="luq-gguf-") as scratch:
        header = Path(scratch) / HEADER
        write_header_only(checkpoint, family, header, dtype="f16", tokenizer=has_tokenizer)
        return family, lay_out("", header, settings, dataset), has_tokenizer


def part_names(plan: Plan) -> list[list[str]]:
    """The tensors of a plan by part: one for all outside the layers, then one a layer.

    A mixed plan's come in groups of tensors that share a type, so that other mixtures find them.
    """
    parts: dict[tuple[int | None, str | None], list[str]] = {(None, None): []}
    for name in plan.types:
        layer = layer_of(name)
        group = group_of(name) if plan.low_type == MIXED else None
        parts.setdefault((layer, group), []).append(name)
    return list(parts.values())
