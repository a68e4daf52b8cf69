"""Pico checkpoints of every family in transformers and in llama.cpp: the same pictures and questions to both."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from luq_gguf.checkpoint import Checkpoint
from luq_gguf.demo import FRESH_SEED
from luq_gguf.demo.scenes import draw_scene, make_scene
from luq_gguf.export import export_text, export_vision
from luq_gguf.families import Family, find_family
from luq_gguf.runtime import Runtime
from luq_gguf.samples import Turns

QUESTION = "What is in the picture?"
SEEING = ("qwen2.5-vl", "qwen2-vl", "qwen3-vl", "llava-1.5", "gemma-3")
READING = ("qwen2.5", "qwen3", "llama")
_QWEN = ("<|image_pad|>", "", "<|image_pad|>", "")
PLACES = {
    "qwen2.5-vl": _QWEN,
    "qwen2-vl": _QWEN,
    "qwen3-vl": _QWEN,
    "llava-1.5": ("<image>", "", "<image>", ""),
    "gemma-3": ("<start_of_image>", "\n\n<start_of_image>", "<image_soft_token>", "<end_of_image>\n\n"),
}
"""What the template writes for an image, and what transformers' processors put there."""
GRIDS = ((4, 4), (6, 3), (3, 6), (9, 2))
"""Columns and rows of tokens: square, wide, tall, wider."""


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A drawn scene, squeezed: wide and tall images have something to see too."""
    return draw_scene(make_scene(FRESH_SEED + seed)).resize((width, height), Image.Resampling.BICUBIC)


def cosine(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    """Of the last axis."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    return (left * right).sum(-1) / np.linalg.norm(left, axis=-1) / np.linalg.norm(right, axis=-1)


@dataclass(frozen=True)
class Original:
    """A checkpoint in transformers, in float32 and with transformers' own processor."""

    name: str
    folder: Path

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint.open(self.folder)

    @cached_property
    def family(self) -> Family:
        return find_family(self.checkpoint.config, self.checkpoint)

    @cached_property
    def model(self) -> Any:
        kind = AutoModelForImageTextToText if self.name in SEEING else AutoModelForCausalLM
        return kind.from_pretrained(self.folder, dtype=torch.float32).eval()

    @cached_property
    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.folder)

    @cached_property
    def image_processor(self) -> Any:
        return AutoImageProcessor.from_pretrained(self.folder, backend="pil")

    @cached_property
    def template(self) -> str:
        """From the place where the hub's checkpoint keeps it."""
        if self.tokenizer.chat_template:
            return str(self.tokenizer.chat_template)
        return str(json.loads((self.folder / "chat_template.json").read_text())["chat_template"])

    def sizes(self) -> list[tuple[int, int]]:
        """Pictures that the family takes as they are: of several shapes, or the one square."""
        rule = self.family.image_grid
        if rule.side is not None:
            return [(rule.side, rule.side)]
        return [(columns * rule.factor, rows * rule.factor) for columns, rows in GRIDS]

    def inputs(
        self, question: str, image: Image.Image | None = None, answer: str = "", turns: Turns = ()
    ) -> dict[str, torch.Tensor]:
        """What transformers' processor makes of a question; its classes for videos are not installed here."""
        said = [*(text for turn in turns for text in turn), question]
        messages: list[dict[str, Any]] = []
        for number, text in enumerate(said):
            content: Any = text
            if self.name in SEEING:
                content = [{"type": "image"}] * (image is not None and number == 0) + [{"type": "text", "text": text}]
            messages.append({"role": ("user", "assistant")[number % 2], "content": content})
        options = {"chat_template": self.template, "add_generation_prompt": True, "tokenize": False}
        prompt = self.tokenizer.apply_chat_template(messages, **options) + answer
        given: dict[str, torch.Tensor] = {}
        if image is not None:
            given = dict(self.image_processor(images=[image], return_tensors="pt"))
            given.pop("num_crops", None)
            place, before, piece, after = PLACES[self.name]
            assert prompt.count(place) == 1
            prompt = prompt.replace(place, before + piece * self.tokens_of(given) + after)
        begins = bool(self.tokenizer.bos_token) and prompt.startswith(self.tokenizer.bos_token)
        ids = self.tokenizer(prompt, add_special_tokens=not begins, return_tensors="pt").input_ids
        given |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if image is not None and self.name != "llava-1.5":
            kinds = (ids == self.tokenizer.convert_tokens_to_ids(PLACES[self.name][2])).int()
            given["token_type_ids" if self.name == "gemma-3" else "mm_token_type_ids"] = kinds
        return given

    def tokens_of(self, given: dict[str, torch.Tensor]) -> int:
        """Tokens of an image, from transformers' own configuration."""
        config = self.model.config
        if "image_grid_thw" in given:
            return int(given["image_grid_thw"].prod()) // config.vision_config.spatial_merge_size**2
        if self.name == "gemma-3":
            return int(config.mm_tokens_per_image)
        return int((config.vision_config.image_size // config.vision_config.patch_size) ** 2)

    def logits(self, question: str, image: Image.Image | None = None) -> NDArray[np.float32]:
        """Of the next token."""
        with torch.inference_mode():
            return self.model(**self.inputs(question, image), use_cache=False).logits[0, -1].float().numpy()

    def features(self, image: Image.Image) -> NDArray[np.float32]:
        """What the decoder gets for an image, (tokens, hidden); for deeper layers side by side with it."""
        made = self.inputs(QUESTION, image)
        given = {key: made[key] for key in ("pixel_values", "image_grid_thw") if key in made}
        with torch.inference_mode():
            found = self.model.get_image_features(**given)
        rows = found.pooler_output
        rows = rows if isinstance(rows, torch.Tensor) else torch.cat([*rows])
        deep = [torch.cat([*part]) for part in getattr(found, "deepstack_features", None) or []]
        return torch.cat([rows.reshape(-1, rows.shape[-1]), *deep], dim=-1).float().numpy()


@dataclass(frozen=True)
class Exported:
    """Both 16-bit files of a checkpoint."""

    text: Path
    mmproj: Path | None

    @contextmanager
    def running(self, **options: Any) -> Iterator[Runtime]:
        with Runtime(self.text, self.mmproj, threads=1, context=2048, **options) as runtime:
            yield runtime


def export(original: Original, target: Path, dtype: str, layout: str | None = None) -> Exported:
    """Both files in one type."""
    family = find_family(original.checkpoint.config, original.checkpoint)
    family.choose_layout(layout)
    name = f"{dtype}{layout or ''}"
    text, vision = target / f"text-{dtype}.gguf", target / f"vision-{name}.gguf"
    export_text(original.checkpoint, family, text, dtype=dtype)
    if family.vision is None:
        return Exported(text, None)
    export_vision(original.checkpoint, family, vision, dtype=dtype)
    return Exported(text, vision)


def features_in_llama_cpp(runtime: Runtime, image: Image.Image) -> NDArray[np.float32]:
    """What llama.cpp's vision part makes of an image, (tokens, width)."""
    mtmd, llama = runtime._mtmd, runtime._llama
    with ExitStack() as stack:
        bitmap = runtime._bitmap(image, stack)
        chunks = mtmd.mtmd_input_chunks_init()
        stack.callback(mtmd.mtmd_input_chunks_free, chunks)
        text = mtmd.mtmd_default_marker()
        source = mtmd.mtmd_input_text(text=text, text_len=len(text), add_special=False, parse_special=True)
        array = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
        assert mtmd.mtmd_tokenize(runtime._vision, chunks, ctypes.byref(source), array, 1) == 0
        for index in range(mtmd.mtmd_input_chunks_size(chunks)):
            chunk = mtmd.mtmd_input_chunks_get(chunks, index)
            if mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE:
                assert mtmd.mtmd_encode_chunk(runtime._vision, chunk) == 0
                tokens = mtmd.mtmd_input_chunk_get_n_tokens(chunk)
                width = llama.llama_model_n_embd_inp(runtime._model)
                found = mtmd.mtmd_get_output_embd(runtime._vision)
                return np.ctypeslib.as_array(found, shape=(tokens * width,)).reshape(tokens, width).copy()
    raise AssertionError("llama.cpp found no image")
