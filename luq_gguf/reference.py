"""What the 16-bit model says at the held-out answers: its top tokens with their log-probabilities.

Kept with the analysis, so that a quantized file can be judged without a 16-bit one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luq_gguf.artifacts import atomic_path
from luq_gguf.errors import ArtifactError

FORMAT = "luq-gguf reference 1"
TOP = 64


@dataclass(frozen=True)
class Reference:
    """Teacher-forced answers of the held-out samples, their tokens one after the other.

    `samples` are ids, `starts` (samples + 1,) where each one's tokens begin; `answers` (tokens,) the tokens
    of the answers; `top` (tokens, k) and `log_probabilities` (tokens, k) what the model says in each place,
    best first; `context` names what the prompts can be made again from.
    """

    samples: tuple[str, ...]
    starts: NDArray[np.int64]
    answers: NDArray[np.int32]
    top: NDArray[np.int32]
    log_probabilities: NDArray[np.float32]
    context: dict[str, Any]


def write_reference(path: Path, reference: Reference) -> None:
    """Write as safetensors."""
    from safetensors.numpy import save_file

    metadata = {"format": FORMAT, "samples": json.dumps(reference.samples), "context": json.dumps(reference.context)}
    names = ("starts", "answers", "top", "log_probabilities")
    tensors = {name: np.ascontiguousarray(getattr(reference, name)) for name in names}
    with atomic_path(path) as partial:
        save_file(tensors, partial, metadata)


def read_reference(path: Path) -> Reference:
    """Read it; raises ArtifactError where it is missing, cut or of another kind."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as handle:
            metadata = handle.metadata() or {}
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 - not a mapping
        if metadata.get("format") != FORMAT:
            raise ArtifactError(f"{path} is no reference of this version", path=path, hint="analyze the model again")
        samples, context = tuple(json.loads(metadata["samples"])), json.loads(metadata["context"])
        reference = Reference(samples, context=context, **tensors)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"cannot read {path}: {error}", path=path, hint="analyze the model again") from error
    rows = len(reference.answers)
    if len(reference.starts) != len(samples) + 1 or reference.top.shape != reference.log_probabilities.shape:
        raise ArtifactError(f"{path} contradicts itself", path=path, hint="analyze the model again")
    if len(reference.top) != rows or reference.starts[-1] != rows:
        raise ArtifactError(f"{path} contradicts itself", path=path, hint="analyze the model again")
    return reference
