"""What the 16-bit model says at the held-out answers: its top tokens with their log-probabilities.

Kept with the analysis, so that a quantized file can be judged without a 16-bit one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from luq_gguf.errors import ArtifactError
from luq_gguf.tensor_record import read_arrays, write_arrays

if TYPE_CHECKING:
    import torch

FORMAT = "luq-gguf reference 2"
TOP = 64
PLACES = 1024
"""Answer tokens whose logits are in memory at once."""
FORMS: dict[str, tuple[type[np.generic], int]] = {
    "starts": (np.int64, 1), "prompts": (np.int32, 1), "answers": (np.int32, 1), "top": (np.int32, 2),
    "log_probabilities": (np.float32, 2), "rest": (np.float32, 1),
}  # fmt: skip
ARRAYS = tuple(FORMS)


@dataclass(frozen=True)
class Reference:
    """Teacher-forced answers of the held-out samples, their tokens one after the other.

    `samples` are ids, `starts` (samples + 1,) where each one's tokens begin, `prompts` (samples,) how many tokens stand
    before them, those of images among them; `answers` (tokens,) the tokens of the answers, each ended by `turn_end`;
    `top` (tokens, k) and `log_probabilities` (tokens, k) what the model says in each place, best first, and `rest`
    (tokens,) the probability of all other tokens; `context` names what the prompts can be made again from.
    """

    samples: tuple[str, ...]
    starts: NDArray[np.int64]
    prompts: NDArray[np.int32]
    answers: NDArray[np.int32]
    top: NDArray[np.int32]
    log_probabilities: NDArray[np.float32]
    rest: NDArray[np.float32]
    context: dict[str, Any]

    @property
    def turn_end(self) -> str:
        """The text that ends every answer."""
        return str(self.context.get("turn_end", ""))

    def some(self, places: Sequence[int]) -> Reference:
        """The part that the samples in these places have in it."""
        chosen, lengths = np.array(places, dtype=np.int64), np.diff(self.starts)
        kept = np.isin(np.repeat(np.arange(len(self.samples)), lengths), chosen)
        return Reference(
            samples=tuple(self.samples[place] for place in chosen),
            starts=np.concatenate([[0], np.cumsum(lengths[chosen])]).astype(np.int64),
            prompts=self.prompts[chosen],
            answers=self.answers[kept],
            top=self.top[kept],
            log_probabilities=self.log_probabilities[kept],
            rest=self.rest[kept],
            context=self.context,
        )


def score_answers(
    hidden: torch.Tensor, head: Iterable[torch.Tensor], top: int = TOP
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
    """The best `top` tokens at each place, their log-probabilities, and the probability of the rest.

    `hidden` (places, width) is float32; `head` gives the output matrix (vocabulary, width) some rows at a time, so
    that no more logits than of these rows are in memory.
    """
    import torch

    places = len(hidden)
    total = torch.full((places,), -torch.inf, dtype=torch.float64)
    best = torch.full((places, top), -torch.inf, dtype=torch.float64)
    ids = torch.zeros((places, top), dtype=torch.long)
    start = 0
    for rows in head:
        for part in (slice(first, first + PLACES) for first in range(0, places, PLACES)):
            logits = (hidden[part] @ rows.T).double()
            total[part] = torch.logaddexp(total[part], logits.logsumexp(dim=1))
            values, indices = logits.topk(min(top, len(rows)), dim=1)
            best[part], order = torch.cat([best[part], values], dim=1).topk(top, dim=1)
            ids[part] = torch.cat([ids[part], indices + start], dim=1).gather(1, order)
        start += len(rows)
    log_probabilities = (best - total[:, None])[:, :start]
    rest = (1 - log_probabilities.exp().sum(dim=1)).clamp(min=0)
    return ids[:, :start].int().numpy(), log_probabilities.float().numpy(), rest.float().numpy()


def write_reference(path: Path, reference: Reference) -> None:
    """Write as safetensors."""
    note = {"samples": list(reference.samples), "context": reference.context}
    write_arrays(path, FORMAT, {name: getattr(reference, name) for name in ARRAYS}, note)


def read_reference(path: Path) -> Reference:
    """Read it; raises ArtifactError where it is missing, cut, of another kind, or contradicts itself."""
    try:
        arrays, note = read_arrays(path, FORMAT)
        tensors = {name: arrays[name] for name in ARRAYS}
        samples, context = note["samples"], note["context"]
    except (ValueError, KeyError, TypeError) as error:
        raise _broken(path, str(error)) from error
    if any(tensors[name].dtype != kind or tensors[name].ndim != rank for name, (kind, rank) in FORMS.items()):
        raise _broken(path, "its arrays have another form")
    named = isinstance(samples, list) and all(isinstance(sample, str) for sample in samples)
    if not named or not isinstance(context, dict):
        raise _broken(path, "its note has another form")
    samples = tuple(samples)
    reference = Reference(samples, context=context, **tensors)
    if not _is_sound(reference):
        raise _broken(path, "it contradicts itself")
    return reference


def _is_sound(reference: Reference) -> bool:
    places = len(reference.answers)
    starts, top, values = reference.starts, reference.top, reference.log_probabilities
    count = len(reference.samples)
    shapes = len(starts) == count + 1 == len(reference.prompts) + 1 and top.shape == values.shape and top.ndim == 2
    lengths = shapes and len(top) == places == len(reference.rest) and starts[0] == 0 and starts[-1] == places
    return bool(
        lengths
        and (np.diff(starts) >= 0).all()
        and all(np.isfinite(array).all() for array in (values, reference.rest))
        and min(reference.answers.min(initial=0), top.min(initial=0)) >= 0
    )


def _broken(path: Path, why: str) -> ArtifactError:
    return ArtifactError(f"cannot read {path} as a reference: {why}", path=path, hint="analyze the model again")
