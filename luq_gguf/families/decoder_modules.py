"""A decoder in torch: transformers' own modules, loaded one at a time from a checkpoint.

Takes a checkpoint, gives decoder layers and the output head; families with a vision tower add the image features.
Nothing here holds more than one layer, or one block of the vision tower, at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from luq_gguf.checkpoint import Checkpoint, require_finite
from luq_gguf.errors import CheckpointError, TensorError, UnsupportedModelError
from luq_gguf.families.base import Family

HEAD_ROWS = 4096
Prepared = tuple[NDArray[np.float32], tuple[int, int]]
"""An image as the vision tower takes it, and its rows and columns of patches."""
Room = dict[str, torch.Tensor]
"""Tensors by their names in a module: memory that one layer after the other is read into."""


class DecoderModules:
    """The model's parts in one compute type; a family names transformers' classes for them."""

    config_class: ClassVar[Any]
    layer_class: ClassVar[Any]
    norm_class: ClassVar[Any]
    rotary_class: ClassVar[Any]
    position_axes: ClassVar[int] = 1
    """Rows of `positions`: 3 for M-RoPE."""
    deep_layers: int = 0
    """After so many of the first layers, features of the images are added to the states."""

    def __init__(self, checkpoint: Checkpoint, family: Family, dtype: torch.dtype) -> None:
        self.checkpoint = checkpoint
        self.family = family
        self.dtype = dtype
        self._finite: set[str] = set()
        try:
            self.config = self.config_class(**checkpoint.config, attn_implementation="sdpa")
        except Exception as error:
            raise CheckpointError(
                f"transformers cannot use {checkpoint.folder / 'config.json'}: {' '.join(str(error).split())}",
                hint="download the checkpoint's original config.json",
            ) from error
        self.text = getattr(self.config, "text_config", self.config)

    def read_ahead(self, index: int) -> None:
        """Have the system read a layer's tensors while something else is done; beyond the last layer there is none."""
        if index < self.family.layers:
            prefix = f"model.layers.{index}."
            names = [tensor.source for tensor in self.family.text_tensors() if tensor.source.startswith(prefix)]
            self.checkpoint.read_ahead([self.family.find(self.checkpoint, name) for name in names])

    def tensor(self, source: str, room: torch.Tensor | None = None) -> torch.Tensor:
        """A tensor of the checkpoint in the compute type, in `room` where that has its shape.

        Raises TensorError where it is not finite.
        """
        name = self.family.find(self.checkpoint, source)
        shape = self.checkpoint.info(name).shape
        made = torch.empty(shape, dtype=self.dtype) if room is None or room.shape != shape else room
        flat, start = made.view(-1), 0
        for part in self.checkpoint.chunks(name, 0, flat.numel()):
            if name not in self._finite:
                require_finite(part, name)
            values = torch.from_numpy(part)
            flat[start : start + len(part)] = values.view(torch.bfloat16) if part.dtype == np.uint16 else values
            start += len(part)
        self._finite.add(name)
        return made

    def fill_tower(self, tower: torch.nn.Module, prefix: str, blocks: str) -> None:
        """Give a tower on the meta device its tensors; each of its `blocks` has them only while it computes."""
        self.fill(tower, prefix, without=f"{blocks}.")
        room: Room = {}
        for name, block in tower.get_submodule(blocks).named_children():
            block.register_forward_pre_hook(self._filler(f"{prefix}{blocks}.{name}.", room))
            block.register_forward_hook(_empty)

    def _filler(self, prefix: str, room: Room) -> Callable[..., None]:
        return lambda module, _: self.fill(module, prefix, room=room)

    def fill(
        self, module: torch.nn.Module, prefix: str, *, without: str | None = None, room: Room | None = None
    ) -> None:
        """Give a module on the meta device the checkpoint's tensors whose names begin with `prefix`.

        Those whose names go on with `without` stay there. What was filled in `room` before is overwritten.
        """
        room = {} if room is None else room
        state = {}
        for name, place in module.state_dict().items():
            if without is not None and name.startswith(without):
                continue
            state[name] = room[name] = self.tensor(prefix + name, room.get(name))
            if state[name].shape != place.shape:
                found, wanted = tuple(state[name].shape), tuple(place.shape)
                raise TensorError(
                    f"tensor {prefix + name} has the shape {found}, config.json says {wanted}",
                    tensor=prefix + name,
                    hint="the checkpoint's files do not belong together",
                )
        module.load_state_dict(state, strict=without is None, assign=True)
        module.requires_grad_(False).eval()

    def prepare(self, image: Image.Image) -> Prepared:
        """A fitted image as the vision tower takes it."""
        raise UnsupportedModelError(f"{self.family.name} takes no images, this one of {image.size} neither")

    def image_features(self, groups: Iterable[Sequence[Prepared]]) -> Iterator[list[torch.Tensor]]:
        """Features (tokens, hidden * (1 + deep_layers)) of each image, from what `prepare` gave.

        The images of a group go through the tower together; it keeps them apart. Those for deeper layers stand to the
        right of those that take the embeddings' place.
        """
        raise UnsupportedModelError(f"{self.family.name} takes no images, these {len(list(groups))} groups neither")

    def layer(self, index: int, room: Room | None = None) -> torch.nn.Module:
        """One decoder layer with its weights; those of an earlier one in the same `room` are gone."""
        with torch.device("meta"):
            module: torch.nn.Module = self.layer_class(self.text, index)
        self.fill(module, f"model.layers.{index}.", room=room)
        return module

    def run(self, module: torch.nn.Module, states: torch.Tensor, rotary: Any, is_image: torch.Tensor) -> torch.Tensor:
        """States (batch, tokens, hidden) after a layer; `is_image` (batch, tokens) numbers a token's image from 1."""
        del is_image  # here no token sees what is to its right
        found: torch.Tensor = module(states, position_embeddings=rotary, attention_mask=None)
        return found

    def embed(self, ids: NDArray[np.int64]) -> torch.Tensor:
        """Embeddings (tokens, hidden), reading only the rows that occur."""
        name = self.family.find(self.checkpoint, "model.embed_tokens.weight")
        distinct, places = np.unique(ids, return_inverse=True)
        return torch.from_numpy(self.checkpoint.read_rows(name, distinct)[places]).to(self.dtype)

    def positions_of(self, is_image: NDArray[np.bool_], grid: tuple[int, int] | None) -> NDArray[np.int64]:
        """Positions (axes, tokens) of a sequence with at most one image of `grid` rows and columns of tokens."""
        del grid
        return np.arange(len(is_image))[None]

    def rotary(self, positions: torch.Tensor) -> Any:
        """What the layers need for positions (axes, batch, tokens): cosine and sine."""
        rows = positions[0] if self.position_axes == 1 else positions
        return self.rotary_class(self.text)(torch.empty(0, dtype=self.dtype), rows)

    def norm(self) -> torch.nn.Module:
        """The norm after the last layer."""
        module: torch.nn.Module = self.norm_class(self.text.hidden_size, eps=self.text.rms_norm_eps)
        self.fill(module, "model.norm.")
        return module

    def head(self) -> Iterator[torch.Tensor]:
        """The output matrix in float32, some rows at a time."""
        source = "model.embed_tokens.weight" if self.family.tied_embeddings else "lm_head.weight"
        name = self.family.find(self.checkpoint, source)
        rows = self.checkpoint.tensors[name].shape[0]
        for start in range(0, rows, HEAD_ROWS):
            wanted = np.arange(start, min(rows, start + HEAD_ROWS))
            yield torch.from_numpy(self.checkpoint.read_rows(name, wanted))


def _empty(module: torch.nn.Module, _: Any, __: Any) -> None:
    """Let go of a module's weights."""
    module.to("meta")
