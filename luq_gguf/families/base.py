"""What every model family answers: its tensors, its metadata and its image grid.

A family is made from a config alone and touches no weights. Knows nothing of quantization.
"""

from __future__ import annotations

import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

from luq_gguf.checkpoint import Checkpoint
from luq_gguf.errors import CheckpointError, RequestError, TensorError

if TYPE_CHECKING:
    from luq_gguf.families.decoder_modules import DecoderModules

Dtype = Literal["f16", "bf16", "f32"]
MetadataEntry = tuple[str, Any, GGUFValueType, GGUFValueType | None]
"""Key, value, type, and the type of an array's items."""
ReadTensor = Callable[[str], NDArray[np.float32]]
LEAST_SCALE, MOST_SCALE = 1e-4, 1e4
"""Of what is taken off colors from 0 to 1, and of what they are divided by."""
LAYER_WEIGHTS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 77


@dataclass(frozen=True)
class TensorSource:
    """A GGUF tensor and what it is made of.

    `shape` is the GGUF tensor's in numpy's order (rows, row length); `source` the tensor of the
    checkpoint under its hub name. `transform` is "" (as it is), "third:N" (that third of the rows), "frame:N" (that
    slice of axis 2 of a 3-D convolution), "rotary:HEADS" (the rows of each head in the order of llama.cpp's LLaMA:
    the two numbers of a rotated pair side by side), or "plus:N" (N is added to every value).

    A tensor that is computed has `make` instead, which is given a function that reads a tensor by its hub name; its
    `source` is empty.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    transform: str = ""
    make: Callable[[ReadTensor], NDArray[np.float32]] | None = field(default=None, compare=False)

    @property
    def source_shape(self) -> tuple[int, ...]:
        """The shape that the checkpoint's tensor must have."""
        if self.transform.startswith("third:"):
            return (3 * self.shape[0], *self.shape[1:])
        if self.transform.startswith("frame:"):
            return (*self.shape[:2], 2, *self.shape[2:])
        return self.shape


@dataclass(frozen=True)
class ImageGrid:
    """How a family wants images: sides in multiples of `factor`, area within pixels, then (x - mean) / std.

    `factor` is the side of an image token in pixels. Where `side` is given, every image becomes a square of that side:
    widened with the color `padding`, or stretched where that is None.
    """

    factor: int
    min_pixels: int
    max_pixels: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    side: int | None = None
    padding: tuple[int, int, int] | None = None


class Family(ABC):
    """One model family with one config; `find_family` makes it."""

    name: ClassVar[str]
    architecture: ClassVar[str]
    """What llama.cpp calls the text model's architecture."""
    tokenizer_pattern: str | None
    """The regular expression by which the tokenizer splits texts; None for SentencePiece, which does not split them."""
    turn_end: str
    """Ends a turn."""
    image_piece: ClassVar[str] = ""
    """Stands for one token of an image in a prompt."""
    image_place: ClassVar[str] = ""
    """What the chat template writes for an image; `image_prompt` takes its place."""
    layer_weights: ClassVar[tuple[str, ...]] = LAYER_WEIGHTS

    layouts: tuple[str, ...] = ()
    """Where the mmproj can be laid out in several ways: their names, the default first."""
    layout: str = ""

    layers: int
    hidden_size: int
    tied_embeddings: bool
    hparams: dict[str, Any]
    vision: dict[str, Any] | None
    image_grid: ImageGrid

    def image_prompt(self, tokens: int) -> str:
        """An image of so many tokens in a prompt, as llama.cpp hands it to the model."""
        return self.image_piece * tokens

    def choose_layout(self, name: str | None) -> None:
        """Take one of `layouts`, the default for None; raises RequestError."""
        if name is None:
            return
        if name not in self.layouts:
            known = ", ".join(self.layouts) if self.layouts else "it has only one"
            raise RequestError(f"the vision part of {self.name} has no layout {name!r}", hint=f"known are {known}")
        self.layout = name

    @property
    def image_factor(self) -> int:
        """Image sides are multiples of this many pixels."""
        return self.image_grid.factor

    @property
    def min_pixels(self) -> int:
        """The least area of an image, in pixels."""
        return self.image_grid.min_pixels

    @property
    def max_pixels(self) -> int:
        """The largest area of an image, in pixels."""
        return self.image_grid.max_pixels

    @property
    def image_mean(self) -> tuple[float, float, float]:
        """Mean that is taken off every color channel of values from 0 to 1."""
        return self.image_grid.mean

    @property
    def image_std(self) -> tuple[float, float, float]:
        """What every color channel is then divided by."""
        return self.image_grid.std

    @abstractmethod
    def text_tensors(self) -> list[TensorSource]:
        """All tensors of the text GGUF, in llama.cpp's order (by layer, then by name), from the config alone."""

    @abstractmethod
    def vision_tensors(self) -> list[TensorSource]:
        """All tensors of the mmproj, from the config alone; none for a model that takes no images."""

    def checkpoint_tensors(self) -> list[TensorSource]:
        """Every tensor that the checkpoint must have, in the shape of its config."""
        return [*self.text_tensors(), *self.vision_tensors()]

    @abstractmethod
    def vision_type(self, tensor: TensorSource, dtype: Dtype) -> GGMLQuantizationType:
        """The type that llama.cpp's converter gives a tensor of the mmproj."""

    @abstractmethod
    def names_in_files(self, source: str) -> Sequence[str]:
        """The names under which checkpoints store a tensor of that hub name, hub form first."""

    @abstractmethod
    def text_metadata(self, checkpoint: Checkpoint, *, dtype: Dtype, tokenizer: bool = True) -> list[MetadataEntry]:
        """All metadata of the text GGUF, `general.architecture` first."""

    @abstractmethod
    def read_tokenizer_kind(self, checkpoint: Checkpoint) -> None:
        """Take from the checkpoint's tokenizer what differs within the family; found so where a checkpoint is given."""

    @abstractmethod
    def add_sizes(self, writer: gguf.GGUFWriter) -> None:
        """Add the keys of the architecture: sizes and rotary positions."""

    @abstractmethod
    def vision_metadata(self, checkpoint: Checkpoint, *, dtype: Dtype) -> list[MetadataEntry]:
        """All metadata of the mmproj."""

    @abstractmethod
    def modules(self) -> type[DecoderModules]:
        """The class of this family's parts in torch, imported when asked for."""

    def text_type(self, tensor: TensorSource, dtype: Dtype) -> GGMLQuantizationType:
        """The type that llama.cpp's converter gives a tensor of the text GGUF: vectors stay in F32."""
        return plain_type(dtype) if len(tensor.shape) > 1 else GGMLQuantizationType.F32

    def find(self, checkpoint: Checkpoint, source: str) -> str:
        """The name under which the checkpoint has a tensor; raises TensorError where it has none."""
        for name in self.names_in_files(source):
            if name in checkpoint.tensors:
                return name
        raise TensorError(
            f"tensor {source} is missing from {checkpoint.folder}",
            tensor=source,
            hint="the checkpoint is incomplete or its config.json belongs to another model",
        )


def plain_type(dtype: Dtype) -> GGMLQuantizationType:
    """The ggml type of a dtype's name."""
    return GGMLQuantizationType[dtype.upper()]


class ConfigReader:
    """Takes values out of a config and says which key is wrong."""

    def __init__(self, content: dict[str, Any], place: str) -> None:
        self.content = content
        self.place = place

    def integer(self, key: str, default: int | None = None, *, maximum: int = 1 << 24) -> int:
        """A whole number from 1 to `maximum`."""
        value = self._get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= maximum:
            raise self.wrong(key, value, f"a whole number from 1 to {maximum}")
        return value

    def number(self, key: str, default: float | None = None, *, maximum: float = 1e30) -> float:
        """A positive number."""
        value = self._get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= maximum:
            raise self.wrong(key, value, f"a positive number of at most {maximum:g}")
        return float(value)

    def integers(self, key: str, default: list[int] | None = None, *, maximum: int = 1 << 24) -> list[int]:
        """A list of whole numbers from 0 to `maximum`, not empty."""
        value = self._get(key, default)
        if not isinstance(value, list) or not 0 < len(value) <= 4096:
            raise self.wrong(key, value, "a list of whole numbers")
        if any(not isinstance(item, int) or isinstance(item, bool) or not 0 <= item <= maximum for item in value):
            raise self.wrong(key, value, f"whole numbers from 0 to {maximum}")
        return list(value)

    def triple(self, key: str, *, positive: bool = False) -> tuple[float, float, float]:
        """Three numbers, one a color channel."""
        value = self._get(key, None)
        low, high = (LEAST_SCALE if positive else -MOST_SCALE), MOST_SCALE
        numbers = isinstance(value, list) and all(type(item) in (int, float) and low <= item <= high for item in value)
        if not isinstance(value, list) or not numbers or len(value) != 3:
            raise self.wrong(key, value, "three positive numbers" if positive else "three numbers")
        return (float(value[0]), float(value[1]), float(value[2]))

    def section(self, key: str) -> ConfigReader:
        """A nested object."""
        value = self._get(key, None)
        if not isinstance(value, dict):
            raise self.wrong(key, value, "an object")
        return ConfigReader(value, f"{self.place}: {key}")

    def require_unlike(self, sizes: dict[str, Any]) -> None:
        """Raise CheckpointError for a tower in which llama.cpp would take feed-forward matrices for each other."""
        if sizes["intermediate_size"] == sizes["hidden_size"]:
            raise self.wrong(
                "intermediate_size", sizes["intermediate_size"],
                "another number than the tower's hidden size: llama.cpp "
                "tells the two matrices of a feed-forward part apart by it",
            )  # fmt: skip

    def wrong(self, key: str, value: object, wanted: str) -> CheckpointError:
        """The error for a key with a value that cannot be."""
        shown = _SHORT.repr(value)
        return CheckpointError(
            f"{self.place}: {key} is {shown}, not {wanted}", hint="download the checkpoint's original files again"
        )

    def _get(self, key: str, default: object) -> object:
        value = self.content.get(key)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(
                f"{self.place}: {key} is missing", hint="download the checkpoint's original files again"
            )
        return value
