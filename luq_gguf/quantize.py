"""Quantizes GGUF files through llama.cpp's own quantizer, whole ones and parts of a model.

Takes a 16-bit GGUF of any set of a model's tensors, a type for each and an importance matrix; gives the
quantized file, or what types llama.cpp would choose. Knows nothing of checkpoints, scores and budgets.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf.constants import GGMLQuantizationType, Keys

from luq_gguf import TOOL
from luq_gguf.artifacts import atomic_path, require_space
from luq_gguf.errors import ArtifactError, GGUFError, QuantizeError
from luq_gguf.gguf_file import GGUFFile, GGUFTensor, align, tensor_bytes
from luq_gguf.importance import ImatrixNote, read_means
from luq_gguf.planning import TensorSpec, is_weight, override_pattern, tensor_order
from luq_gguf.progress import Progress, silent
from luq_gguf.quantizer import Quantizer
from luq_gguf.type_names import UNQUANTIZED, base_file_type, parse_high_type, parse_low_type

TypeMap = Mapping[str, GGMLQuantizationType]
BUFFER_BYTES = 1 << 29
"""Rows that llama.cpp holds at once; without a limit a large vocabulary takes gigabytes. The bytes do not change."""

_TENSOR_LINE = re.compile(r"\[\s*(\d+)/\s*(\d+)\] (\S+)\s+- \[.*?\], type =\s*(\w+), (.*)")
_NEW_TYPE = re.compile(r"-> .* MiB \((\w+)\)")
_FALLBACK = re.compile(r"warning: (\S+)\s+- ncols .* -> falling back to\s+(\w+)")


@dataclass(frozen=True)
class ResolvedTypes:
    """What llama.cpp gives each tensor: in a file of the high type, and where it is low.

    `high_fallbacks` names the tensors whose rows the high type's choice cannot take, with what they get instead.
    """

    high: dict[str, GGMLQuantizationType]
    low: dict[str, GGMLQuantizationType]
    high_fallbacks: dict[str, GGMLQuantizationType]


def resolve_types(header: Path, high_type: str, low_type: str, *, quantizer: Quantizer | None = None) -> ResolvedTypes:
    """Ask llama.cpp, by dry runs on a GGUF whose data may be a hole, for the type of every tensor.

    Raises RequestError for an unknown name, QuantizeError where llama.cpp refuses the file.
    """
    high_file_type, low = parse_high_type(high_type), parse_low_type(low_type)
    tensors = GGUFFile.open(header).tensors
    lowered = {name: low for name, tensor in tensors.items() if _quantizable(tensor)}
    with _borrowed(quantizer) as child:
        high_types, fallbacks = _dry_run(child, header, int(high_file_type), {})
        low_types, _ = _dry_run(child, header, int(base_file_type(high_file_type)), lowered)
    for found in (high_types, low_types):
        if found.keys() != tensors.keys():
            raise QuantizeError(f"llama.cpp's dry run names {len(found)} of the {len(tensors)} tensors of {header}")
    low_types = {name: low_types[name] if name in lowered else kind for name, kind in high_types.items()}
    return ResolvedTypes(high_types, low_types, fallbacks)


def tensor_specs(header: GGUFFile, resolved: ResolvedTypes) -> list[TensorSpec]:
    """What `plan` needs to know of every tensor of a 16-bit GGUF, in llama.cpp's order."""
    rows = [header.tensors[name] for name in tensor_order(header.tensors)]
    return [TensorSpec(row.name, row.shape, resolved.high[row.name], resolved.low[row.name], row.type) for row in rows]


def quantize_gguf(
    source: Path,
    target: Path,
    types: TypeMap,
    imatrix: Path | None,
    *,
    note: ImatrixNote | None = None,
    high_type: str = "Q4_K_M",
    threads: int = 0,
    progress: Progress = silent,
    quantizer: Quantizer | None = None,
) -> None:
    """Quantize a 16-bit GGUF so that each tensor gets its type of `types`; `threads` 0 takes all cores.

    `high_type` is what the file calls itself; `note` is what it says of its importance matrix, by default what the
    matrix says. Raises QuantizeError where llama.cpp fails, `types` lacks a weight, or the result has another type
    than asked for; nothing is then left under the target's name.
    """
    tensors = GGUFFile.open(source).tensors
    wanted = {name: _wanted(source, name, types) for name, tensor in tensors.items() if _quantizable(tensor)}
    _require_space(target, GGUFFile.open(source), wanted)
    job = _job(source, int(base_file_type(parse_high_type(high_type))), wanted)
    said = note or (ImatrixNote.of(imatrix) if imatrix else None)
    metadata = [(Keys.General.QUANTIZED_BY, TOOL), *(said.pairs() if said else ())]
    if high_type.upper() in UNQUANTIZED:
        metadata.insert(0, ("general.file_type", int(parse_high_type(high_type))))
    with atomic_path(target) as partial, _borrowed(quantizer) as child:
        job |= {"target": str(partial), "imatrix": str(imatrix or ""), "metadata": metadata, "threads": threads}
        child.run(job, _Reporter(progress))
        _refuse_other_types(partial, {name: wanted.get(name, tensor.type) for name, tensor in tensors.items()})


def make_part(
    export: Callable[[Path], None],
    part: Path,
    types: TypeMap,
    imatrix: Path | None,
    *,
    high_type: str = "Q4_K_M",
    threads: int = 0,
    progress: Progress = silent,
    quantizer: Quantizer | None = None,
) -> bool:
    """Make the quantized GGUF of some tensors, unless it stands there already; says whether it had to.

    `export` writes the 16-bit GGUF of these tensors to the path that it is given; `types` may name more.
    """
    if _is_finished(part, types):
        return False
    scratch = part.with_name(f".{part.name}.16bit.{os.getpid()}.partial")
    try:
        export(scratch)
        quantize_gguf(
            scratch,
            part,
            types,
            imatrix,
            high_type=high_type,
            threads=threads,
            progress=progress,
            quantizer=quantizer,
        )
    finally:
        scratch.unlink(missing_ok=True)
    return True


def part_key(checkpoint: str, dtype: str, types: TypeMap, imatrix: Path | None) -> str:
    """A name for a part that changes with everything that its bytes depend on.

    `types` are those of the tensors in the part; of the importance matrix only their rows count.
    """
    version = importlib.metadata.version("llama-cpp-python")
    named = {name: kind.name for name, kind in sorted(types.items())}
    digest = hashlib.sha256(json.dumps(["part 1", version, checkpoint, dtype, named]).encode())
    weights = [name for name, kind in sorted(types.items()) if kind.name not in UNQUANTIZED]
    for name, row in (read_means(imatrix, weights) if imatrix else {}).items():
        digest.update(f"{name} {row.size}\n".encode() + row.tobytes())
    return digest.hexdigest()[:32]


@contextlib.contextmanager
def _borrowed(quantizer: Quantizer | None) -> Iterator[Quantizer]:
    """The child that was handed in, or one of our own that ends with the block."""
    if quantizer is not None:
        yield quantizer
        return
    with Quantizer() as own:
        yield own


def _quantizable(tensor: GGUFTensor) -> bool:
    return len(tensor.shape) > 1 and is_weight(tensor.name)


def _wanted(source: Path, name: str, types: TypeMap) -> GGMLQuantizationType:
    if name not in types:
        raise QuantizeError(f"no type is given for {name} of {source}", hint="take a plan of this model")
    return types[name]


def _job(source: Path, file_type: int, types: TypeMap) -> dict[str, Any]:
    return {
        "source": str(source),
        "target": "",
        "file_type": file_type,
        "types": [(override_pattern(name), int(kind)) for name, kind in types.items()],
        "weights": list(types),
        "imatrix": "",
        "metadata": [],
        "threads": 1,
        "buffer_bytes": BUFFER_BYTES,
        "dry_run": False,
    }


def _dry_run(
    child: Quantizer, header: Path, file_type: int, types: TypeMap
) -> tuple[dict[str, GGMLQuantizationType], dict[str, GGMLQuantizationType]]:
    reporter = _Reporter(silent)
    child.run(_job(header, file_type, types) | {"dry_run": True}, reporter)
    return reporter.types, reporter.fallbacks


@dataclass
class _Reporter:
    """Reads llama.cpp's log: a line a tensor is both progress and, in a dry run, the answer."""

    progress: Progress
    types: dict[str, GGMLQuantizationType] = field(default_factory=dict)
    fallbacks: dict[str, GGMLQuantizationType] = field(default_factory=dict)

    def __call__(self, line: str) -> None:
        if match := _FALLBACK.search(line):
            self.fallbacks[match[1]] = GGMLQuantizationType[match[2].upper()]
        if match := _TENSOR_LINE.search(line):
            changed = _NEW_TYPE.search(match[5])
            self.types[match[3]] = GGMLQuantizationType[(changed[1] if changed else match[4]).upper()]
            self.progress("quantize", int(match[1]), int(match[2]))


def _require_space(target: Path, source: GGUFFile, wanted: TypeMap) -> None:
    sizes = (align(_bytes_of(tensor, wanted)) for tensor in source.tensors.values())
    require_space(target.parent, source.data_start + sum(sizes), f"quantizing to {target.name}")


def _bytes_of(tensor: GGUFTensor, wanted: TypeMap) -> int:
    kind = wanted.get(tensor.name, tensor.type)
    try:
        return tensor_bytes(kind, tensor.shape)
    except ValueError as error:
        raise QuantizeError(
            f"{tensor.name} cannot be {kind.name}: {error}", hint="take the types that `plan` gives for this model"
        ) from error


def _refuse_other_types(path: Path, wanted: TypeMap) -> None:
    """llama.cpp substitutes a type silently where a row's length does not fit."""
    for name, tensor in GGUFFile.open(path).tensors.items():
        if tensor.type != wanted[name]:
            raise QuantizeError(
                f"llama.cpp made {name} {tensor.type.name} instead of {wanted[name].name}",
                hint="make the plan again with this version of llama.cpp",
            )


def _is_finished(part: Path, types: TypeMap) -> bool:
    """Whether a part stands there whole; parts reach their names only when they are."""
    if not part.exists():
        return False
    try:
        tensors = GGUFFile.open(part).tensors
    except (GGUFError, ArtifactError):
        return False
    return all(not _quantizable(tensor) or tensor.type == types.get(name) for name, tensor in tensors.items())
