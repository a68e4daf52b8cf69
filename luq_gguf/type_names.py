"""The names under which users ask for types, and what llama.cpp calls them.

A high type is a file type (Q4_K_M mixes tensor types by llama.cpp's own rule), a low type is one tensor type.
"""

from __future__ import annotations

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from luq_gguf.errors import RequestError

_NOT_QUANTIZABLE = {"Q8_1", "Q8_K", "F32", "F64", "I8", "I16", "I32", "I64"}
_NO_FILE_TYPE = {"GUESSED", "NVFP4", "MXFP4_MOE"}
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
UNQUANTIZED = frozenset({"F32", "F16", "BF16"})

LOW_TYPES = {kind.name: kind for kind in GGMLQuantizationType if kind.name not in _NOT_QUANTIZABLE}
"""Tensor types that llama.cpp can quantize to."""
HIGH_TYPES = {
    name: kind
    for kind in LlamaFileType
    if (name := kind.name.removeprefix("MOSTLY_").removeprefix("ALL_")) not in _NO_FILE_TYPE
}
"""File types that llama.cpp has a rule for."""


def parse_low_type(name: str) -> GGMLQuantizationType:
    """The tensor type of this name, in any case; raises RequestError that lists the known ones."""
    kind = LOW_TYPES.get(name.upper())
    if kind is None:
        raise RequestError(f"unknown low type {name!r}", hint=f"known are {', '.join(sorted(LOW_TYPES))}")
    return kind


def parse_high_type(name: str) -> LlamaFileType:
    """The file type of this name, in any case; raises RequestError that lists the known ones."""
    upper = name.upper()
    kind = HIGH_TYPES.get(_ALIASES.get(upper, upper))
    if kind is None:
        raise RequestError(f"unknown high type {name!r}", hint=f"known are {', '.join(sorted(HIGH_TYPES))}")
    return kind


def base_file_type(wanted: LlamaFileType) -> LlamaFileType:
    """The file type to hand to the quantizer: it heeds types given per tensor only when this is a quantized one."""
    unquantized = {HIGH_TYPES[name] for name in UNQUANTIZED}
    return LlamaFileType.MOSTLY_Q8_0 if wanted in unquantized else wanted


def bits_of(name: str) -> float:
    """Bits a weight of the tensor type of this name."""
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    return float(8 * size / block)
