"""What a layer changes, against sums over all tokens in float64, and against what the blocks of a real decoder add."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from luq_gguf.changes import Additions


class Block(torch.nn.Module):
    """A layer whose blocks add fixed vectors."""

    def __init__(self, attention: float, ffn: float) -> None:
        super().__init__()
        self.self_attn = torch.nn.Module()
        self.self_attn.o_proj = torch.nn.Identity()
        self.mlp = torch.nn.Module()
        self.mlp.down_proj = torch.nn.Identity()
        self.sizes = attention, ffn

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        attention, ffn = self.sizes
        states = states + self.self_attn.o_proj(torch.full_like(states, attention))
        return states + self.mlp.down_proj(torch.full_like(states, ffn))


def test_shares_and_cosines_are_means_over_the_chosen_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 5, 16, generator=generator)
    inside, among = torch.tensor([7, 0, 3]), np.array([2, 0, 1])
    additions = Additions({"text": [(inside, among)]}, {"text": 3})
    layer = Block(0.5, -2.0)
    handles = additions.watch(layer, 0)
    after = layer(states)
    for handle in handles:
        handle.remove()
    layer(states + 100)  # nobody listens any more
    order = inside[torch.from_numpy(np.argsort(among))]
    left, right = (rows.reshape(-1, 16)[order].double().numpy() for rows in (states, after))
    found = additions.figures({"text": left.astype(np.float32)}, {"text": right.astype(np.float32)})
    lengths = (right**2).sum(axis=1)
    assert found["attention_text"] == pytest.approx((16 * 0.25 / lengths).mean(), rel=1e-6)
    assert found["ffn_text"] == pytest.approx((16 * 4.0 / lengths).mean(), rel=1e-6)
    cosines = (left * right).sum(axis=1) / np.sqrt((left**2).sum(axis=1) * lengths)
    assert found["cosine_text"] == pytest.approx(cosines.mean(), rel=1e-6)


def test_a_token_of_length_nothing_counts_as_unchanged_by_nothing() -> None:
    additions = Additions({"text": []}, {"text": 2})
    zeros = np.zeros((2, 4), np.float32)
    additions.squares = {"attention_text": np.zeros(2, np.float32), "ffn_text": np.zeros(2, np.float32)}
    assert set(additions.figures({"text": zeros}, {"text": zeros}).values()) == {0.0}
