"""The tokens that are looked at more closely: where they lie in batches of samples, and their vectors in one order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from luq_gguf.entropy import choose_tokens

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ChosenTokens:
    """The tokens that go into an entropy: for each batch, where they lie in it and where among the vectors."""

    count: int
    places: tuple[tuple[torch.Tensor, NDArray[np.intp]], ...]

    def take(self, states: Sequence[torch.Tensor]) -> NDArray[np.float32]:
        """Their vectors (count, hidden), in an order that does not depend on the batches."""
        vectors = np.empty((self.count, states[0].shape[-1]), dtype=np.float32)
        for (inside, among), batch in zip(self.places, states, strict=True):
            vectors[among] = batch.reshape(-1, batch.shape[-1])[inside].float().numpy()
        return vectors


def locate_tokens(found: list[tuple[NDArray[np.uint64], int, int]], batches: int) -> ChosenTokens:
    """Pick tokens by rank; `found` has each sample's ranks, the number of its batch, and where it begins there."""
    import torch

    ranks = np.concatenate([rank for rank, _, _ in found])
    owner = np.concatenate([np.full(len(rank), number) for rank, number, _ in found])
    inside = np.concatenate([start + np.arange(len(rank)) for rank, _, start in found])
    picked = choose_tokens(ranks)
    among = [np.flatnonzero(owner[picked] == number) for number in range(batches)]
    places = tuple((torch.from_numpy(inside[picked][rows]), rows) for rows in among)
    return ChosenTokens(len(picked), places)
