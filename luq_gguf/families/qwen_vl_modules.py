"""Qwen2.5-VL in torch: transformers' own modules, loaded one at a time from a checkpoint.

Takes a checkpoint, gives image features, decoder layers and the output head. Nothing here holds more than
one layer, or the vision tower, at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLDecoderLayer,
    Qwen2_5_VLRMSNorm,
    Qwen2_5_VLRotaryEmbedding,
    Qwen2_5_VLVisionRotaryEmbedding,
)

from luq_gguf.checkpoint import Checkpoint, require_finite
from luq_gguf.errors import CheckpointError, TensorError
from luq_gguf.families.base import Family

IMAGE_TOKEN = "<|image_pad|>"  # noqa: S105 - not a password
END_TOKEN = "<|im_end|>"  # noqa: S105
HEAD_ROWS = 16384
Patches = tuple[NDArray[np.float32], tuple[int, int]]


class Modules:
    """The model's parts in one compute type."""

    image_token = IMAGE_TOKEN
    end_token = END_TOKEN

    def __init__(self, checkpoint: Checkpoint, family: Family, dtype: torch.dtype) -> None:
        self.checkpoint = checkpoint
        self.family = family
        self.dtype = dtype
        try:
            self.config = Qwen2_5_VLConfig(**checkpoint.config, attn_implementation="sdpa")
        except Exception as error:
            raise CheckpointError(
                f"transformers cannot use {checkpoint.folder / 'config.json'}: {' '.join(str(error).split())}",
                hint="download the checkpoint's original config.json",
            ) from error
        self.text, self.vision = self.config.text_config, self.config.vision_config

    def tensor(self, source: str) -> torch.Tensor:
        """A tensor of the checkpoint in the compute type; raises TensorError where it is not finite."""
        name = self.family.find(self.checkpoint, source)
        return self._torch(self.checkpoint.read(name), name)

    def _torch(self, stored: NDArray[Any], name: str) -> torch.Tensor:
        require_finite(stored, name)
        tensor = torch.from_numpy(stored)
        return (tensor.view(torch.bfloat16) if stored.dtype == np.uint16 else tensor).to(self.dtype)

    def _load(self, module: torch.nn.Module, prefix: str) -> None:
        state = {}
        for name, place in module.state_dict().items():
            state[name] = self.tensor(prefix + name)
            if state[name].shape != place.shape:
                found, wanted = tuple(state[name].shape), tuple(place.shape)
                raise TensorError(
                    f"tensor {prefix + name} has the shape {found}, config.json says {wanted}",
                    tensor=prefix + name,
                    hint="the checkpoint's files do not belong together",
                )
        module.load_state_dict(state, assign=True)
        module.requires_grad_(False).eval()

    def image_features(self, groups: Iterable[Sequence[Patches]]) -> Iterator[list[torch.Tensor]]:
        """Features (tokens, hidden) of each image, from its patches and its (rows, columns) of patches.

        The images of a group go through the tower together; it keeps them apart.
        """
        with torch.device("meta"):
            tower = Qwen2_5_VisionTransformerPretrainedModel(self.vision)
        tower.rotary_pos_emb = Qwen2_5_VLVisionRotaryEmbedding(self.vision)  # its frequencies are in no checkpoint
        self._load(tower, "visual.")
        for group in groups:
            rows = torch.from_numpy(np.concatenate([rows for rows, _ in group])).to(self.dtype)
            grids = torch.tensor([[1, *grid] for _, grid in group])
            features = tower(rows, grid_thw=grids).pooler_output
            yield list(features.split((grids.prod(dim=1) // self.vision.spatial_merge_size**2).tolist()))

    def layer(self, index: int) -> torch.nn.Module:
        """One decoder layer with its weights."""
        with torch.device("meta"):
            module: torch.nn.Module = Qwen2_5_VLDecoderLayer(self.text, index)
        self._load(module, f"model.layers.{index}.")
        return module

    def embed(self, ids: NDArray[np.int64]) -> torch.Tensor:
        """Embeddings (tokens, hidden), reading only the rows that occur."""
        name = self.family.find(self.checkpoint, "model.embed_tokens.weight")
        distinct, places = np.unique(ids, return_inverse=True)
        return torch.from_numpy(self.checkpoint.read_rows(name, distinct)[places]).to(self.dtype)

    def rotary(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine for M-RoPE positions (3, batch, tokens)."""
        cosine, sine = Qwen2_5_VLRotaryEmbedding(self.text)(torch.empty(0, dtype=self.dtype), positions)
        return cosine, sine

    def norm(self) -> torch.nn.Module:
        """The norm after the last layer."""
        module: torch.nn.Module = Qwen2_5_VLRMSNorm(self.text.hidden_size, eps=self.text.rms_norm_eps)
        self._load(module, "model.norm.")
        return module

    def head(self) -> Iterator[torch.Tensor]:
        """The output matrix in float32, some rows at a time."""
        source = "model.embed_tokens.weight" if self.family.tied_embeddings else "lm_head.weight"
        name = self.family.find(self.checkpoint, source)
        rows = self.checkpoint.tensors[name].shape[0]
        for start in range(0, rows, HEAD_ROWS):
            wanted = np.arange(start, min(rows, start + HEAD_ROWS))
            yield torch.from_numpy(self.checkpoint.read_rows(name, wanted))


def positions_of(is_image: NDArray[np.bool_], grid: tuple[int, int] | None) -> NDArray[np.int64]:
    """M-RoPE positions (3, tokens) of a sequence with at most one image of `grid` merged rows and columns."""
    count = len(is_image)
    if grid is None:
        return np.tile(np.arange(count), (3, 1))
    start = int(is_image.argmax())
    inside = np.indices((1, *grid)).reshape(3, -1) + start
    after = np.arange(count - start - inside.shape[1]) + start + max(grid)
    return np.concatenate([np.tile(np.arange(start), (3, 1)), inside, np.tile(after, (3, 1))], axis=1)
