"""What the Qwen-VL models share in torch: patches, the tower's frame, and the positions of M-RoPE."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from luq_gguf.families.decoder_modules import DecoderModules, Prepared
from luq_gguf.images import patchify


class QwenVLModules(DecoderModules):
    """A Qwen decoder with its tower; a version names transformers' classes."""

    position_axes: ClassVar[int] = 3
    tower_class: ClassVar[Any]
    tower_rotary_class: ClassVar[Any]

    def prepare(self, image: Image.Image) -> Prepared:
        """Patches (rows * columns, channels * frames * patch * patch), and rows and columns."""
        return patchify(image, self.family)

    def image_features(self, groups: Iterable[Sequence[Prepared]]) -> Iterator[list[torch.Tensor]]:
        """Features of each image, as `DecoderModules.image_features`."""
        vision = self.config.vision_config
        with torch.device("meta"):
            tower = self.tower_class(vision)
        tower.rotary_pos_emb = self.tower_rotary_class(vision)  # its frequencies are in no checkpoint
        self.fill_tower(tower, "visual.", "blocks")
        for group in groups:
            rows = torch.from_numpy(np.concatenate([rows for rows, _ in group])).to(self.dtype)
            grids = torch.tensor([[1, *grid] for _, grid in group])
            features = self.features_of(tower(rows, grid_thw=grids))
            counts = (grids.prod(dim=1) // vision.spatial_merge_size**2).tolist()
            yield list(torch.split(features, counts))

    def features_of(self, output: Any) -> torch.Tensor:
        """All features of the tower's output, side by side."""
        features: torch.Tensor = output.pooler_output
        return features

    def positions_of(self, is_image: NDArray[np.bool_], grid: tuple[int, int] | None) -> NDArray[np.int64]:
        """M-RoPE positions (3, tokens): time, height, width."""
        return mrope_positions(is_image, grid)


def mrope_positions(is_image: NDArray[np.bool_], grid: tuple[int, int] | None) -> NDArray[np.int64]:
    """M-RoPE positions (3, tokens) of a sequence with at most one image of `grid` merged rows and columns."""
    count = len(is_image)
    if grid is None:
        return np.tile(np.arange(count), (3, 1))
    start = int(is_image.argmax())
    inside = np.indices((1, *grid)).reshape(3, -1) + start
    after = np.arange(count - start - inside.shape[1]) + start + max(grid)
    return np.concatenate([np.tile(np.arange(start), (3, 1)), inside, np.tile(after, (3, 1))], axis=1)
