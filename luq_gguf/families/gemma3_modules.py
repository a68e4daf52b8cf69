"""Gemma 3 in torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import Gemma3Config, SiglipVisionModel
from transformers.models.gemma3.modeling_gemma3 import (
    Gemma3DecoderLayer,
    Gemma3MultiModalProjector,
    Gemma3RMSNorm,
    Gemma3RotaryEmbedding,
)

from luq_gguf.families.clip_tower import PREFIX, patches_a_side
from luq_gguf.families.decoder_modules import DecoderModules, Prepared
from luq_gguf.images import normalize

WINDOWED = "sliding_attention"


class Modules(DecoderModules):
    """The model's parts in one compute type."""

    config_class: ClassVar[Any] = Gemma3Config
    layer_class: ClassVar[Any] = Gemma3DecoderLayer
    norm_class: ClassVar[Any] = Gemma3RMSNorm

    def prepare(self, image: Image.Image) -> Prepared:
        """Colors (channels, height, width), and rows and columns of patches."""
        side = patches_a_side(self.family.vision or {})
        return normalize(image, self.family.image_grid), (side, side)

    def image_features(self, groups: Iterable[Sequence[Prepared]]) -> Iterator[list[torch.Tensor]]:
        """Features (tokens, hidden) of each image."""
        with torch.device("meta"):
            tower, projector = SiglipVisionModel(self.config.vision_config), Gemma3MultiModalProjector(self.config)
        tower.embeddings.position_ids = torch.arange(patches_a_side(self.family.vision or {}) ** 2)[None]
        self.fill_tower(tower, PREFIX, "encoder.layers")
        self.fill(projector, "multi_modal_projector.")
        for group in groups:
            pixels = torch.from_numpy(np.stack([pixels for pixels, _ in group])).to(self.dtype)
            yield list(projector(tower(pixels).last_hidden_state))

    def embed(self, ids: NDArray[np.int64]) -> torch.Tensor:
        """Embeddings, enlarged by the root of their length; images' features are not."""
        return super().embed(ids) * torch.tensor(self.text.hidden_size**0.5, dtype=self.dtype)

    def rotary(self, positions: torch.Tensor) -> Any:
        """Cosine and sine for each kind of layer."""
        made = Gemma3RotaryEmbedding(self.text)
        nothing = torch.empty(0, dtype=self.dtype)
        return {kind: made(nothing, positions[0], kind) for kind in made.layer_types}

    def run(self, module: torch.nn.Module, states: torch.Tensor, rotary: Any, is_image: torch.Tensor) -> torch.Tensor:
        """States after a layer; the tokens of an image see each other in both directions."""
        kind = self.text.layer_types[module.layer_idx]
        window = self.text.sliding_window if kind == WINDOWED else None
        mask = seen_by(is_image, window)[:, None]
        found: torch.Tensor = module(states, position_embeddings=rotary[kind], attention_mask=mask)
        return found


def seen_by(is_image: torch.Tensor, window: int | None) -> torch.Tensor:
    """Which tokens (batch, token, seen) each token sees: those before it, in the window, and all of its own image."""
    places = torch.arange(is_image.shape[1])
    behind = places[:, None] - places[None]
    seen = behind >= 0
    if window is not None:
        seen = seen & (behind < window)
    same = (is_image[:, :, None] == is_image[:, None]) & (is_image[:, :, None] > 0)
    return seen[None] | same
