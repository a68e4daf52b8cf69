"""How much a layer changes what flows through it, seen at some tokens while it runs.

Takes vectors before and after a layer, and what its two blocks add in between; gives a figure a layer. A layer that
hardly changes anything can be coarse, and what a block adds is as coarse as its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

ATTENTION, FFN, COSINE = "attention", "ffn", "cosine"
PLAIN = {ATTENTION: "self_attn.o_proj", FFN: "mlp.down_proj"}
NORMED = {ATTENTION: "post_attention_layernorm", FFN: "post_feedforward_layernorm"}
"""Modules whose outputs are added to what flows through: of layers that normalize them first, those norms."""

Vectors = NDArray[np.float32]
Places = Sequence[tuple["torch.Tensor", NDArray[np.intp]]]
"""By batch: where chosen tokens lie in it, and where among them."""


@dataclass
class Additions:
    """Squared lengths of what each block of a layer adds at the chosen tokens; `tokens` names their kinds."""

    chosen: Mapping[str, Places]
    counts: Mapping[str, int]
    squares: dict[str, Vectors] = field(default_factory=dict)

    def watch(self, layer: torch.nn.Module, number: int) -> list[Any]:
        """Listen while batch `number` runs through a layer; the handles end that."""
        modules = dict(layer.named_modules())
        names = NORMED if NORMED[FFN] in modules else PLAIN
        return [modules[name].register_forward_hook(self._hook(block, number)) for block, name in names.items()]

    def _hook(self, block: str, number: int) -> Callable[..., None]:
        def hook(_: torch.nn.Module, __: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            rows = output.reshape(-1, output.shape[-1])
            for tokens, places in self.chosen.items():
                inside, among = places[number]
                squares = self.squares.setdefault(f"{block}_{tokens}", np.zeros(self.counts[tokens], np.float32))
                squares[among] = rows[inside].float().square().sum(dim=1).numpy()

        return hook

    def figures(self, before: Mapping[str, Vectors], after: Mapping[str, Vectors]) -> dict[str, float]:
        """Means over the chosen tokens, of vectors (tokens, hidden) before and after the layer.

        "cosine_<tokens>" between both; "attention_<tokens>" and "ffn_<tokens>": the squared length of what that block
        adds, as a share of the vector's after the layer.
        """
        found = {}
        for tokens, left in before.items():
            right = after[tokens]
            length = np.square(right, dtype=np.float64).sum(axis=1)
            products = np.einsum("ij,ij->i", left, right, dtype=np.float64)
            lengths = np.sqrt(np.square(left, dtype=np.float64).sum(axis=1) * length)
            found[f"{COSINE}_{tokens}"] = _mean(products, lengths)
            for block in PLAIN:
                found[f"{block}_{tokens}"] = _mean(self.squares[f"{block}_{tokens}"].astype(np.float64), length)
        return found


def _mean(part: NDArray[np.float64], whole: NDArray[np.float64]) -> float:
    """The mean ratio; a token of length 0 counts as unchanged by nothing."""
    return float(np.divide(part, whole, out=np.zeros_like(part), where=whole > 0).mean())
