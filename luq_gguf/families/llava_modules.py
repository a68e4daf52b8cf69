"""LLaVA-1.5 in torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionModel, LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from luq_gguf.families.clip_tower import PREFIX, patches_a_side
from luq_gguf.families.decoder_modules import Prepared
from luq_gguf.families.text_only_modules import LlamaModules
from luq_gguf.images import normalize


class Modules(LlamaModules):
    """The model's parts in one compute type."""

    config_class: ClassVar[Any] = LlavaConfig

    def prepare(self, image: Image.Image) -> Prepared:
        """Colors (channels, height, width), and rows and columns of patches."""
        side = patches_a_side(self.family.vision or {})
        return normalize(image, self.family.image_grid), (side, side)

    def image_features(self, groups: Iterable[Sequence[Prepared]]) -> Iterator[list[torch.Tensor]]:
        """Features (tokens, hidden) of each image."""
        with torch.device("meta"):
            tower, projector = CLIPVisionModel(self.config.vision_config), LlavaMultiModalProjector(self.config)
        places = torch.arange(patches_a_side(self.family.vision or {}) ** 2 + 1)[None]
        tower.embeddings.position_ids = places  # in no checkpoint
        self.fill_tower(tower, PREFIX, "encoder.layers")
        self.fill(projector, "multi_modal_projector.")
        for group in groups:
            pixels = torch.from_numpy(np.stack([pixels for pixels, _ in group])).to(self.dtype)
            states = tower(pixels, output_hidden_states=True).hidden_states[self.config.vision_feature_layer]
            yield list(projector(states[:, 1:]))
