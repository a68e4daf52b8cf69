"""LLaVA-1.5: a LLaMA decoder behind a CLIP tower of which the last block and the class token are not used.

llama.cpp's converter makes no mmproj for this family, and its graph has a defect; `llava_layouts` says how it is met.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import gguf
from gguf import GGMLQuantizationType

from luq_gguf.checkpoint import Checkpoint
from luq_gguf.errors import UnsupportedModelError
from luq_gguf.families.base import ConfigReader, Dtype, ImageGrid, MetadataEntry, TensorSource, plain_type
from luq_gguf.families.clip_tower import (
    PREFIX,
    add_tower,
    block_tensors,
    count_parameters,
    names_of_tower,
    patches_a_side,
    read_tower,
    tower_pairs,
    tower_tensor,
)
from luq_gguf.families.llava_layouts import LAYOUTS, PATCH, can_be_exact, lay_out, layout_sizes, stays_wide
from luq_gguf.families.metadata import MetadataRecorder, add_general
from luq_gguf.families.processor_file import read_processor, square_side
from luq_gguf.families.text_only import Llama

if TYPE_CHECKING:
    from luq_gguf.families.decoder_modules import DecoderModules

FEATURES_OF = -2
"""The block whose output is taken, from the end: the one before the last."""
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TOWER_DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 224, "patch_size": 32, "layer_norm_eps": 1e-5,
}  # fmt: skip
"""What transformers takes where a CLIP tower's config does not say."""


class Llava(Llama):
    """LLaVA-1.5 of any size."""

    name: ClassVar[str] = "llava-1.5"
    text_defaults: ClassVar[dict[str, Any]] = Llama.text_defaults | {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
    }  # fmt: skip
    image_piece: ClassVar[str] = "<image>"
    image_place: ClassVar[str] = "<image>"
    tokenizer_pattern: str | None = None

    vision: dict[str, Any]

    def __init__(self, config: dict[str, Any], checkpoint: Checkpoint | None = None) -> None:
        super().__init__(config, checkpoint)
        _require_llava(config)
        reader = ConfigReader(config, "config.json").section("vision_config")
        self.vision = read_tower(ConfigReader({**TOWER_DEFAULTS, **reader.content}, reader.place))
        if (activation := reader.content.get("hidden_act", "quick_gelu")) != "quick_gelu":
            raise reader.wrong("hidden_act", activation, "quick_gelu, the one that llama.cpp computes for this family")
        self.image_grid = self.read_image_grid(checkpoint) if checkpoint else self._square(MEAN, STD)
        self.layouts = LAYOUTS if can_be_exact(self.vision) else LAYOUTS[1:]
        self.layout = self.layouts[0]

    def _square(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> ImageGrid:
        """Images become squares, widened with the mean color, as llama.cpp does by itself."""
        side = patches_a_side(self.vision) * self.vision["patch_size"]
        red, green, blue = (int(255 * part) for part in mean)
        return ImageGrid(self.vision["patch_size"], side * side, side * side, mean, std, side, (red, green, blue))

    def read_image_grid(self, checkpoint: Checkpoint) -> ImageGrid:
        """The rule of the processor's files."""
        reader = read_processor(checkpoint)
        square_side(reader, "crop_size", self.vision["image_size"])
        return self._square(reader.triple("image_mean"), reader.triple("image_std", positive=True))

    def vision_tensors(self) -> list[TensorSource]:
        """All tensors of the mmproj, in the chosen layout."""
        return lay_out(self.layout, self._standard_tensors(), self.vision)

    def checkpoint_tensors(self) -> list[TensorSource]:
        """Those of the standard layout, of which the others are computed."""
        return [*self.text_tensors(), *self._standard_tensors()]

    def _standard_tensors(self) -> list[TensorSource]:
        sizes = self.vision
        hidden, patch = sizes["hidden_size"], sizes["patch_size"]
        embeddings = f"{PREFIX}embeddings."
        rows = patches_a_side(sizes) ** 2 + 1
        return [
            tower_tensor(sizes, f"{embeddings}class_embedding", (hidden,)),
            tower_tensor(sizes, f"{embeddings}patch_embedding.weight", (hidden, sizes["in_channels"], patch, patch)),
            tower_tensor(sizes, f"{embeddings}position_embedding.weight", (rows, hidden)),
            *tower_pairs(sizes, f"{PREFIX}pre_layrnorm", (hidden,)),
            *block_tensors(sizes),
            *self._projector("mm.0", "linear_1", hidden),
            *self._projector("mm.2", "linear_2", self.hidden_size),
        ]

    def _projector(self, name: str, part: str, columns: int) -> list[TensorSource]:
        source = f"multi_modal_projector.{part}"
        return [
            TensorSource(f"{name}.weight", f"{source}.weight", (self.hidden_size, columns)),
            TensorSource(f"{name}.bias", f"{source}.bias", (self.hidden_size,)),
        ]

    def vision_type(self, tensor: TensorSource, dtype: Dtype) -> GGMLQuantizationType:
        """F32 for vectors and positions; the patch convolution is F16 in an F16 file and F32 in any other."""
        if len(tensor.shape) == 1 or stays_wide(self.layout, tensor.name):
            return GGMLQuantizationType.F32
        if tensor.name == PATCH and dtype != "f16":
            return GGMLQuantizationType.F32
        return plain_type(dtype)

    def names_in_files(self, source: str) -> Sequence[str]:
        """As those of the decoder; the tower's and projector's also under `model`."""
        if source.startswith(("vision_tower.", "multi_modal_projector.")):
            return names_of_tower(source)
        return super().names_in_files(source)

    def vision_metadata(self, checkpoint: Checkpoint, *, dtype: Dtype) -> list[MetadataEntry]:
        """Metadata of the mmproj, in the form of llama.cpp's converter for its other towers."""
        recorder = MetadataRecorder(gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.MMPROJ])
        writer = recorder.writer
        add_general(writer, checkpoint, gguf.GGUFType.MMPROJ, count_parameters(self.vision_tensors()), dtype)
        sizes = layout_sizes(self.layout, self.vision)
        add_tower(writer, sizes, self.read_image_grid(checkpoint), self.hidden_size)
        writer.add_clip_projector_type("mlp")
        return recorder.entries()

    def modules(self) -> type[DecoderModules]:
        """This family's parts in torch."""
        from luq_gguf.families.llava_modules import Modules

        return Modules


def _require_llava(config: dict[str, Any]) -> None:
    """Raise UnsupportedModelError for the models of the same class whose tower or projector is another."""
    reader = ConfigReader(config, "config.json")
    parts = {"vision_config": "clip_vision_model", "text_config": "llama"}
    for section, wanted in parts.items():
        if (kind := reader.section(section).content.get("model_type", wanted)) != wanted:
            raise UnsupportedModelError(
                f"config.json: {section} is of type {kind!r}, not {wanted}: of this class only LLaVA-1.5 is handled"
            )
    fixed = {
        "vision_feature_layer": FEATURES_OF, "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu", "multimodal_projector_bias": True,
    }  # fmt: skip
    for key, value in fixed.items():
        if (stated := config.get(key, value)) != value:
            raise reader.wrong(key, stated, f"{value!r}, which llama.cpp's graph for this family has")
