"""Sums of squares of what enters a layer's weights, by channel and kind of token, while samples run through it.

Takes modules and what marks the tokens' kinds; adds up in place, a few rows at a time, so that no second copy of a
layer's widest inputs is ever in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from luq_gguf.artifacts import MODALITIES

if TYPE_CHECKING:
    import torch

INPUTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.down_proj": "ffn_down",
}
"""The modules whose inputs are summed, and the weight under whose name `Sums` keeps them: q, k and v share theirs, gate
and up too."""
BLOCK = 1 << 18
"""Numbers that are widened and squared at once: they stay in a core's cache."""


@dataclass
class InputSums:
    """What was added up so far: `squares` float64 (channels,) and `counts` of tokens, by input and modality."""

    squares: dict[str, dict[str, NDArray[np.float64]]] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)

    def watch(self, index: int, layer: torch.nn.Module, modality: torch.Tensor) -> list[Any]:
        """Add up what enters layer `index` while a batch runs through it; the handles end that."""
        return [
            layer.get_submodule(name).register_forward_pre_hook(self._hook(f"blk.{index}.{weight}.weight", modality))
            for name, weight in INPUTS.items()
        ]

    def _hook(self, name: str, modality: torch.Tensor) -> Callable[..., None]:
        def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            self.add(name, inputs[0], modality)

        return hook

    def add(self, name: str, inputs: torch.Tensor, modality: torch.Tensor) -> None:
        """Add the squares of inputs (batch, tokens, channels); `modality` (3, batch * tokens) is 1 where a token is of
        that kind."""
        import torch

        rows = inputs.reshape(-1, inputs.shape[-1])
        sums = torch.zeros((len(MODALITIES), rows.shape[1]))
        height = max(1, BLOCK // rows.shape[1])
        squares = torch.empty((height, rows.shape[1]))
        for start in range(0, len(rows), height):
            part = rows[start : start + height]
            block = squares[: len(part)]
            block.copy_(part).square_()
            sums.addmm_(modality[:, start : start + height], block)
        found = sums.double().numpy()
        by_modality = self.squares.setdefault(name, {key: np.zeros(rows.shape[1]) for key in MODALITIES})
        counts = self.counts.setdefault(name, dict.fromkeys(MODALITIES, 0))
        for number, key in enumerate(MODALITIES):
            by_modality[key] += found[number]
            counts[key] += int(modality[number].count_nonzero())
