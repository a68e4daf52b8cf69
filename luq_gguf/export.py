"""A checkpoint and its family -> 16- or 32-bit GGUF files, the same as llama.cpp's converter writes.

Tensors are read, converted and written in pieces, so memory does not grow with the model. Knows
nothing of quantization beyond the plain float types.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, get_args

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from numpy.typing import NDArray

from luq_gguf.artifacts import atomic_path, require_space
from luq_gguf.checkpoint import CHUNK, Checkpoint, require_finite, widen
from luq_gguf.errors import CheckpointError, RequestError, TensorError
from luq_gguf.families.base import Dtype, Family, MetadataEntry, TensorSource
from luq_gguf.progress import Progress, silent

ALIGNMENT: int = gguf.GGUF_DEFAULT_ALIGNMENT
MOST_BYTES = 1 << 42
"""Of a model of which nothing but its config is there; twenty times the largest known."""
ITEM_BYTES = {GGMLQuantizationType.F32: 4, GGMLQuantizationType.F16: 2, GGMLQuantizationType.BF16: 2}


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to be written: what it is made of, and as which type."""

    source: TensorSource
    type: GGMLQuantizationType

    @property
    def nbytes(self) -> int:
        """Bytes in the file, without padding."""
        return prod(self.source.shape) * ITEM_BYTES[self.type]


def export_text(
    checkpoint: Checkpoint,
    family: Family,
    target: Path,
    *,
    dtype: str = "auto",
    select: Callable[[str], bool] | None = None,
    tokenizer: bool = True,
    progress: Progress = silent,
) -> None:
    """Write the text model, or the tensors whose GGUF name `select` takes, with the metadata of the whole.

    `tokenizer=False` leaves out the tokenizer's keys, for files that are not run by themselves. Raises
    TensorError for a tensor that is missing, of another shape, not finite, or too large for F16.
    """
    kind = resolve_dtype(checkpoint, dtype)
    tensors = [tensor for tensor in _text_outputs(family, kind) if select is None or select(tensor.source.name)]
    metadata = family.text_metadata(checkpoint, dtype=kind, tokenizer=tokenizer)
    _write(checkpoint, family, target, metadata, tensors, progress=progress, what="export text model")


def export_vision(
    checkpoint: Checkpoint,
    family: Family,
    target: Path,
    *,
    dtype: str = "f16",
    made_by: str = "",
    progress: Progress = silent,
) -> None:
    """Write the mmproj: vision tower and projector. Raises TensorError as `export_text` does.

    `made_by` is noted as `general.quantized_by`; without it the file is the one that llama.cpp's converter writes.
    """
    kind = resolve_dtype(checkpoint, dtype)
    tensors = _vision_outputs(family, kind)
    metadata = _vision_metadata(checkpoint, family, kind, made_by)
    _write(checkpoint, family, target, metadata, tensors, progress=progress, what="export vision tower")


def text_layout(family: Family, dtype: Dtype) -> dict[str, tuple[tuple[int, ...], GGMLQuantizationType]]:
    """Shape (numpy's order) and type of every tensor of the text GGUF, from the config alone."""
    return {tensor.source.name: (tensor.source.shape, tensor.type) for tensor in _text_outputs(family, dtype)}


def write_header_only(
    checkpoint: Checkpoint, family: Family, target: Path, *, dtype: str = "auto", tokenizer: bool = True
) -> None:
    """Write the header of the whole text model; its tensor data are a hole in the file, all zeros.

    Needs no weights: a Checkpoint of config and side files is enough.
    """
    kind = resolve_dtype(checkpoint, dtype)
    tensors = _text_outputs(family, kind)
    data = sum(_padded(tensor.nbytes) for tensor in tensors)
    if data > MOST_BYTES:
        raise CheckpointError(
            f"config.json of {checkpoint.folder} describes a model of {data:,} bytes", hint="is it the model's own?"
        )
    with atomic_path(target) as partial:
        _write_header(partial, family.text_metadata(checkpoint, dtype=kind, tokenizer=tokenizer), tensors)
        with partial.open("r+b") as handle:
            handle.truncate(_padded(partial.stat().st_size) + data)


def vision_file_size(checkpoint: Checkpoint, family: Family, *, dtype: str = "f16", made_by: str = "") -> int:
    """Bytes of the file that `export_vision` would write; only its header is made, in a temporary folder."""
    kind = resolve_dtype(checkpoint, dtype)
    tensors = [OutputTensor(tensor, family.vision_type(tensor, kind)) for tensor in family.vision_tensors()]
    with tempfile.TemporaryDirectory(prefix="luq-gguf-") as scratch:
        header = Path(scratch) / "header"
        _write_header(header, _vision_metadata(checkpoint, family, kind, made_by), tensors)
        return _padded(header.stat().st_size) + sum(_padded(tensor.nbytes) for tensor in tensors)


def _vision_metadata(checkpoint: Checkpoint, family: Family, dtype: Dtype, made_by: str) -> list[MetadataEntry]:
    metadata = family.vision_metadata(checkpoint, dtype=dtype)
    if made_by:
        metadata.append((gguf.Keys.General.QUANTIZED_BY, made_by, gguf.GGUFValueType.STRING, None))
    return metadata


def resolve_dtype(checkpoint: Checkpoint, dtype: str) -> Dtype:
    """The dtype to write: "auto" is bf16 where most of the checkpoint's weights are bf16, else f16."""
    if dtype == "auto":
        bf16 = sum(info.nbytes for info in checkpoint.tensors.values() if info.dtype == "BF16")
        return "bf16" if 2 * bf16 > sum(info.nbytes for info in checkpoint.tensors.values()) else "f16"
    for known in get_args(Dtype):
        if dtype == known:
            return known  # type: ignore[no-any-return]
    raise RequestError(f"{dtype!r} is no type of a 16-bit export", hint="use auto, f16, bf16 or f32")


def _text_outputs(family: Family, dtype: Dtype) -> list[OutputTensor]:
    return [OutputTensor(tensor, family.text_type(tensor, dtype)) for tensor in family.text_tensors()]


def _vision_outputs(family: Family, dtype: Dtype) -> list[OutputTensor]:
    return [OutputTensor(tensor, family.vision_type(tensor, dtype)) for tensor in family.vision_tensors()]


def _write(
    checkpoint: Checkpoint,
    family: Family,
    target: Path,
    metadata: Sequence[MetadataEntry],
    tensors: Sequence[OutputTensor],
    *,
    progress: Progress,
    what: str,
) -> None:
    names = [_checked_name(checkpoint, family, tensor.source) for tensor in tensors]
    total = sum(tensor.nbytes for tensor in tensors)
    require_space(target.parent, total, f"{what} to {target.name}")
    done = 0
    with atomic_path(target) as partial:
        _write_header(partial, metadata, tensors)
        with partial.open("ab") as handle:
            _pad(handle)
            progress(what, done, total)
            for tensor, name in zip(tensors, names, strict=True):
                for piece in _pieces(checkpoint, family, name, tensor.source):
                    handle.write(convert(piece, tensor.type, name).data)
                _pad(handle)
                done += tensor.nbytes
                progress(what, done, total)


def _write_header(path: Path, metadata: Sequence[MetadataEntry], tensors: Sequence[OutputTensor]) -> None:
    writer = GGUFWriter(path=None, arch=str(metadata[0][1]))
    for key, value, kind, item_kind in metadata[1:]:
        writer.add_key_value(key, value, kind, item_kind)
    for tensor in tensors:
        shape = tensor.source.shape
        writer.add_tensor_info(tensor.source.name, shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=tensor.type)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    except (struct.error, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"the checkpoint's side files hold a value that GGUF cannot hold: {error}",
            hint="look into generation_config.json, tokenizer_config.json and the model card",
        ) from error
    finally:
        writer.close()


def require_tensors(checkpoint: Checkpoint, family: Family) -> None:
    """Raise TensorError unless the checkpoint has every tensor of its config, in its shape and a type that is read."""
    for tensor in family.checkpoint_tensors():
        _checked_name(checkpoint, family, tensor)


def _checked_name(checkpoint: Checkpoint, family: Family, source: TensorSource) -> str:
    """The name of a tensor in the files, that of the GGUF for one that is computed; raises TensorError."""
    if source.make is not None:
        return source.name
    name = family.find(checkpoint, source.source)
    shape = checkpoint.info(name).shape
    if shape != source.source_shape:
        raise TensorError(
            f"tensor {name} has shape {shape}, config.json says {source.source_shape}",
            tensor=name,
            hint="config and weights belong to different models",
        )
    return name


def _pieces(checkpoint: Checkpoint, family: Family, name: str, source: TensorSource) -> Iterator[NDArray[Any]]:
    """The values of a GGUF tensor in order: as they are stored, a few million at a time, or computed."""
    kind, _, number = source.transform.partition(":")
    count = prod(source.shape)
    if source.make is not None:
        values = source.make(lambda wanted: checkpoint.read_float32(family.find(checkpoint, wanted)))
        assert values.shape == source.shape, (source.name, values.shape)
        yield np.ascontiguousarray(values)
    elif kind == "frame":
        yield np.ascontiguousarray(checkpoint.read(name)[:, :, int(number)])
    elif kind == "third":
        yield from checkpoint.chunks(name, int(number) * count, (int(number) + 1) * count, CHUNK)
    elif kind == "rotary":
        head = count // int(number)
        for start in range(0, count, head):
            yield _pair_rows(np.concatenate(list(checkpoint.chunks(name, start, start + head))), source.shape)
    elif kind == "plus":
        for values in checkpoint.chunks(name, 0, count, CHUNK):
            wide = widen(values) if values.dtype == np.uint16 else values
            yield wide + wide.dtype.type(number)
    else:
        yield from checkpoint.chunks(name, 0, count, CHUNK)


def _pair_rows(head: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The rows of one head with the two of each rotated pair side by side, where the checkpoint has them half apart."""
    rows = head.reshape(2, -1, *shape[1:])
    return np.ascontiguousarray(rows.swapaxes(0, 1)).reshape(-1)


def convert(values: NDArray[Any], kind: GGMLQuantizationType, name: str) -> NDArray[Any]:
    """Stored values (bf16 as raw bits) in the bits of a ggml float type, rounded to nearest even.

    Raises TensorError for NaN, infinity, and values beyond F16's range.
    """
    require_finite(values, name)
    if values.dtype == np.uint16 and kind == GGMLQuantizationType.BF16:
        return values
    if kind == GGMLQuantizationType.F16:
        return _to_float16(values, name)
    wide = widen(values)
    if kind == GGMLQuantizationType.F32:
        return wide
    rounded = _to_bfloat16(wide)
    require_finite(rounded, name)
    return rounded


def _to_float16(values: NDArray[Any], name: str) -> NDArray[np.float16]:
    if values.dtype == np.float16:
        return values
    wide = widen(values)
    with np.errstate(over="ignore", under="ignore"):
        narrow = wide.astype(np.float16)
    if not np.isfinite(narrow).all():
        raise TensorError(
            f"tensor {name} holds {float(np.abs(wide).max()):g}, too large for f16 (largest 65504)",
            tensor=name,
            hint="use bf16 or f32",
        )
    return narrow


def _to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _padded(size: int) -> int:
    return size + -size % ALIGNMENT


def _pad(handle: BinaryIO) -> None:
    handle.write(bytes(-handle.tell() % ALIGNMENT))
