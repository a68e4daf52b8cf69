"""Files for tests: GGUFs of the gguf library (text models, holes, importance matrices), a .dat written by struct."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGUFWriter

DatEntry = tuple[bytes, int, list[float]]
"""Name, chunks and values of a weight in a .dat file."""
WEIGHTS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True)
class Shape:
    """What the tensors of a decoder follow from."""

    layers: int = 3
    hidden: int = 256
    ffn: int = 512
    heads: int = 4
    kv_heads: int = 2
    vocabulary: int = 512
    tied: bool = False


QWEN_7B = Shape(layers=28, hidden=3584, ffn=18944, heads=28, kv_heads=4, vocabulary=152064)
QWEN_72B = Shape(layers=80, hidden=8192, ffn=29568, heads=64, kv_heads=8, vocabulary=152064)


def tensor_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Names and numpy shapes of a Qwen2 decoder, in the order of a checkpoint."""
    hidden, ffn, kv = shape.hidden, shape.ffn, shape.hidden // shape.heads * shape.kv_heads
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (shape.vocabulary, hidden)}
    for layer in range(shape.layers):
        rows = {
            "attn_norm.weight": (hidden,),
            "attn_q.weight": (hidden, hidden), "attn_q.bias": (hidden,),
            "attn_k.weight": (kv, hidden), "attn_k.bias": (kv,),
            "attn_v.weight": (kv, hidden), "attn_v.bias": (kv,),
            "attn_output.weight": (hidden, hidden),
            "ffn_norm.weight": (hidden,),
            "ffn_gate.weight": (ffn, hidden), "ffn_up.weight": (ffn, hidden), "ffn_down.weight": (hidden, ffn),
        }  # fmt: skip
        shapes |= {f"blk.{layer}.{name}": size for name, size in rows.items()}
    shapes["output_norm.weight"] = (hidden,)
    if not shape.tied:
        shapes["output.weight"] = (shape.vocabulary, hidden)
    return shapes


def write_text_gguf(
    path: Path, shape: Shape, *, select: Callable[[str], bool] = lambda name: True, hole: bool = False, tokens: int = 0
) -> Path:
    """A 16-bit GGUF with seeded weights of the selected tensors; with `hole` the data are a hole in the file."""
    writer = GGUFWriter(path, "qwen2vl")
    for key, value in {
        "block_count": shape.layers, "context_length": 256, "embedding_length": shape.hidden,
        "feed_forward_length": shape.ffn, "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
    }.items():  # fmt: skip
        writer.add_uint32(f"qwen2vl.{key}", value)
    writer.add_name("test model")
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_rope_dimension_sections([16, 24, 24, 0])
    writer.add_file_type(1)
    if tokens:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list([f"token {number}" for number in range(tokens)])
    size = 0
    for name, dimensions in tensor_shapes(shape).items():
        if not select(name):
            continue
        kind = np.dtype(np.float16 if len(dimensions) > 1 else np.float32)
        if hole:
            nbytes = int(np.prod(dimensions)) * kind.itemsize
            writer.add_tensor_info(name, dimensions, kind, nbytes)
            size += -(-nbytes // 32) * 32
        else:
            seed = np.random.SeedSequence(list(name.encode()))
            values = np.random.default_rng(seed).standard_normal(dimensions, np.float32) * 0.05
            writer.add_tensor(name, values.astype(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    if hole:
        writer.write_ti_data_to_file()
        writer.close()
        with path.open("r+b") as handle:
            handle.truncate(-(-path.stat().st_size // 32) * 32 + size)
    else:
        writer.write_tensors_to_file()
        writer.close()
    return path


def write_imatrix(path: Path, shapes: Mapping[str, tuple[int, ...]], *, seed: int = 1) -> Path:
    """A positive importance matrix for every weight, in llama.cpp's form."""
    writer = GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["seeded noise"])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", 512)
    random = np.random.default_rng(seed)
    for name, dimensions in shapes.items():
        if len(dimensions) > 1:
            writer.add_tensor(f"{name}.in_sum2", (random.random((1, dimensions[1])) * 90 + 1).astype(np.float32))
            writer.add_tensor(f"{name}.counts", np.array([[37.0]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def dat_bytes(entries: Sequence[DatEntry], chunks: int | None = 7, dataset: bytes | None = b"wiki.train.raw") -> bytes:
    """The form of save_imatrix_legacy in llama.cpp's tools/imatrix."""
    data = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        data += struct.pack(f"<i{len(name)}sii{len(values)}f", len(name), name, calls, len(values), *values)
    if chunks is not None:
        data += struct.pack("<i", chunks)
    if dataset is not None:
        data += struct.pack(f"<i{len(dataset)}s", len(dataset), dataset)
    return data
