"""What llama.cpp does with images by the kind of their mmproj: where they stand in a prompt, and how large they are.

Takes the metadata of an mmproj. Images that are made as said here are taken by llama.cpp pixel by pixel. Says, too,
whether a text model and an mmproj belong together, as far as their metadata tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luq_gguf.errors import GGUFError
from luq_gguf.images import Limits, square_limits, token_limits

MOST_STEP = 128
MOST_SIDE = 1 << 13
AGAIN = "make or download it again"


@dataclass(frozen=True)
class Projector:
    """One kind: what its models' chat templates write for an image, and whether images are squares.

    `merge` is how many patches side by side become one token where the file does not say; squares are widened with the
    color `padding`, or stretched. `around` stands on both sides of an image where the model was trained so, and
    llama.cpp does not put it there. `architectures` are those of the text models that take it, () any.
    """

    place: str
    merge: int
    merge_key: str = "clip.vision.spatial_merge_size"
    square: bool = False
    padding: tuple[int, int, int] | None = None
    around: str = ""
    architectures: tuple[str, ...] = ()

    def limits(
        self, metadata: Mapping[str, Any], mmproj: Path, most_tokens: int | None, least_tokens: int | None = None
    ) -> Limits:
        """How images are made for this mmproj; raises GGUFError where its numbers cannot be."""

        def size(key: str, default: int, most: int) -> int:
            found = metadata.get(key, default)
            if not isinstance(found, int) or not 1 <= found <= most:
                raise GGUFError(f"{key} in {mmproj} is no number of pixels up to {most}", path=mmproj, hint=AGAIN)
            return found

        step = size("clip.vision.patch_size", 14, MOST_STEP) * size(self.merge_key, self.merge, MOST_STEP)
        if step > MOST_STEP:
            raise GGUFError(f"{mmproj} asks for images in steps of {step} pixels", path=mmproj, hint=AGAIN)
        if self.square:
            side = size("clip.vision.image_size", step, MOST_SIDE)
            return square_limits(step, side - side % step, self.padding)
        return token_limits(step, most_tokens, least_tokens)


_QWEN_PLACE = "<|vision_start|><|image_pad|><|vision_end|>"
_QWEN = Projector(_QWEN_PLACE, 2, architectures=("qwen2vl",))
_KINDS = {
    "qwen2vl_merger": _QWEN,
    "qwen2.5vl_merger": _QWEN,
    "qwen3vl_merger": Projector(_QWEN_PLACE, 2, architectures=("qwen3vl", "qwen3vlmoe")),
    "mlp": Projector("<image>", 1, square=True, padding=(122, 116, 104)),
    "gemma3": Projector(
        "<start_of_image>",
        4,
        "clip.vision.projector.scale_factor",
        square=True,
        around="\n\n",
        architectures=("gemma3",),
    ),
}
_UNKNOWN = Projector("", 2)


def projector_of(metadata: Mapping[str, Any]) -> Projector:
    """The kind of an mmproj, from its metadata; one that is not known is taken like Qwen's."""
    return _KINDS.get(str(metadata.get("clip.projector_type", "")), _UNKNOWN)


def doubt_pair(model: Mapping[str, Any], mmproj: Mapping[str, Any], path: Path) -> str | None:
    """What speaks against a text model and the mmproj at `path`, from the metadata of both: they are named differently.

    Another name is no proof, since fine-tuned models share the mmproj of their base. Raises GGUFError where the text
    model's architecture takes no mmproj of this kind.
    """
    architecture, takers = model.get("general.architecture"), projector_of(mmproj).architectures
    if takers and architecture not in takers:
        raise GGUFError(
            f"{path} is the vision part of a {' or '.join(takers)} model, not of {architecture}", path=path,
            hint="take the mmproj that was made from the same checkpoint",
        )  # fmt: skip
    names = [_name(metadata) for metadata in (model, mmproj)]
    if None in names or names[0] == names[1]:
        return None
    return f"{path.name} is the vision part of {names[1]}, the text model is {names[0]}: answers make sense if they fit"


def _name(metadata: Mapping[str, Any]) -> str | None:
    """What a file says that its model is called, without its size."""
    found = metadata.get("general.basename") or metadata.get("general.name")
    return found if isinstance(found, str) else None
