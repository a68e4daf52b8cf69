"""Samples -> tokens in the model's chat template, with what kind each token is.

Takes a checkpoint's tokenizer and template (run in a sandbox) and a family's image rule.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luq_gguf.artifacts import MODALITIES
from luq_gguf.chat import render_chats
from luq_gguf.checkpoint import Checkpoint
from luq_gguf.errors import CalibrationError, CheckpointError, RequestError
from luq_gguf.families.base import Family
from luq_gguf.families.metadata import begins_texts
from luq_gguf.images import MAX_IMAGE_TOKENS, Picture, fit_to_grid, fitted_size, grid_limits
from luq_gguf.samples import CalibrationSet, Sample, messages_of, without_pictures
from luq_gguf.small_files import MIB, read_small
from luq_gguf.tokenizer_file import load_tokenizer, text_of_token, tokenizing

MAX_TEMPLATE = MIB
MAX_TOKENS = 4096
"""No sample is longer: attention's time grows with the square."""
IMAGE, MULTIMODAL_TEXT, TEXT = range(len(MODALITIES))


@dataclass(frozen=True)
class TokenizedSample:
    """Token ids (tokens,), the index in MODALITIES of each, the picture, and how many tokens the answer has.

    `picture` is fitted to the model's grid when it is read; `grid` is its size in merged tokens, (rows, columns).
    """

    id: str
    ids: NDArray[np.int64]
    kinds: NDArray[np.uint8]
    picture: Picture | None
    grid: tuple[int, int] | None
    answer_tokens: int


@dataclass(frozen=True)
class Prompts:
    """A calibration set in a model's tokens: samples to measure on, samples to judge by.

    Images have at least `least_image_tokens` and at most `image_tokens`; `left_out` says why of samples that the model
    does not take.
    """

    counted: tuple[TokenizedSample, ...]
    held_out: tuple[TokenizedSample, ...]
    least_image_tokens: int
    image_tokens: int
    left_out: tuple[str, ...]


def tokenize_calibration(
    checkpoint: Checkpoint, family: Family, calibration: CalibrationSet, image_tokens: int | None = None
) -> Prompts:
    """A calibration set as a model reads it; one that takes no images gets the samples without one.

    Raises CalibrationError where there is none, and for a sample that the model does not take, unless the set says
    that such are left out.
    """
    if family.vision is None:
        calibration = without_pictures(calibration)
    maker = PromptMaker(checkpoint, family, image_tokens=image_tokens)
    reasons: list[str] = []
    left_out = reasons if calibration.skip_bad else None
    counted, held_out = (tuple(maker.all_of(each, left_out)) for each in (calibration.samples, calibration.held_out))
    if not counted:
        hint = next(iter(reasons), "it takes no images: give texts")
        raise CalibrationError(f"{calibration.name} holds no sample that this model takes", hint=hint)
    return Prompts(counted, held_out, maker.least_image_tokens, maker.image_tokens, tuple(reasons))


class PromptMaker:
    """Tokenizes samples of one model; its images have at most `image_tokens`, half of the longest sample's tokens."""

    def __init__(self, checkpoint: Checkpoint, family: Family, *, image_tokens: int | None = None) -> None:
        self.family = family
        self.checkpoint = checkpoint
        self.tokenizer = load_tokenizer(checkpoint, family.tokenizer_pattern)
        self.beginning = begins_texts(checkpoint, default=family.tokenizer_pattern is None)
        self.template = read_template(checkpoint)
        self.image_id = self._image_id()
        self.longest = min(MAX_TOKENS, family.hparams["max_position_embeddings"])
        self.image_tokens = min(image_tokens or MAX_IMAGE_TOKENS, self.longest // 2)
        self.limits = grid_limits(family.image_grid, self.image_tokens)
        if self.limits.side:
            self.image_tokens = self.least_image_tokens = self._tokens_of_square(image_tokens)
        else:
            token = self.limits.factor**2
            self.least_image_tokens = self.limits.min_pixels // token
            self.image_tokens = self.limits.max_pixels // token

    def _tokens_of_square(self, most: int | None) -> int:
        """The tokens that every image has; raises RequestError where they are too many."""
        side = self.limits.side or 0
        wanted, most = self.limits.tokens(side, side), self.longest if most is None else most
        if wanted > most:
            raise RequestError(
                f"an image of this model always has {wanted} tokens, {most} are allowed",
                hint="leave --image-max-tokens out, or take a model with a longer context",
            )
        return wanted

    def _image_id(self) -> int | None:
        """The id of the token that stands for images; None for a model that takes none."""
        if self.family.vision is None:
            return None
        found: int | None = self.tokenizer.token_to_id(self.family.image_piece)
        if found is None:
            raise CheckpointError(
                f"the tokenizer has no {self.family.image_piece}", hint="download the original tokenizer files"
            )
        return found

    def tokenize(self, sample: Sample) -> list[TokenizedSample]:
        """The sample's tokens; a long plain text becomes several samples.

        Raises CalibrationError where there are no tokens, too many, or image tokens in a text.
        """
        return self.all_of([sample])

    def _tokenize(self, sample: Sample, prompt: str) -> list[TokenizedSample]:
        if sample.text is not None:
            ids = self._begin(sample.text)
            pieces = [ids[start : start + self.longest] for start in range(0, max(len(ids), 1), self.longest)]
            names = [sample.id, *(f"{sample.id}/{number}" for number in range(1, len(pieces)))]
            return [self._finish(name, piece, None, None, 0) for name, piece in zip(names, pieces, strict=True)]
        fitted, grid = None, None
        if sample.picture is not None:
            fitted, grid = self._fit(sample.picture)
            prompt = prompt.replace(self.family.image_place, self.family.image_prompt(grid[0] * grid[1]), 1)
        # encoded by itself, as the model says it: SentencePiece puts a space before it, as those models were trained
        answer = [] if sample.answer is None else self._encode(sample.answer + self.family.turn_end)
        return [self._finish(sample.id, self._begin(prompt) + answer, fitted, grid, len(answer))]

    def _begin(self, text: str) -> list[int]:
        """Tokens of a whole text, with the token that begins one unless it stands there."""
        begun = self.beginning and not text.startswith(self.beginning)
        return self._encode(self.beginning + text if begun else text)

    def _fit(self, picture: Picture) -> tuple[Picture, tuple[int, int]]:
        """The picture on the model's grid, made when it is read, and its rows and columns of tokens."""
        width, height = fitted_size(*picture.measure(), self.limits)
        fitted = Picture(picture.name, picture.key, lambda: fit_to_grid(picture.read(), self.limits), (width, height))
        return fitted, (height // self.limits[0], width // self.limits[0])

    def _finish(
        self,
        name: str,
        ids: list[int],
        picture: Picture | None,
        grid: tuple[int, int] | None,
        answer_tokens: int,
    ) -> TokenizedSample:
        tokens = np.array(ids, dtype=np.int64)
        is_image = tokens == (-1 if self.image_id is None else self.image_id)
        if not ids or int(is_image.sum()) != (grid[0] * grid[1] if grid else 0):
            raise CalibrationError(
                f"sample {name} has {int(is_image.sum())} image tokens in {len(ids)} tokens",
                hint=f"leave {self.family.image_place or 'images'} out of texts, and empty texts out of the set",
            )
        if len(ids) > self.longest:
            raise CalibrationError(
                f"sample {name} has {len(ids)} tokens, at most {self.longest} can be used",
                hint="shorten its question or answer",
            )
        kinds = np.where(is_image, IMAGE, MULTIMODAL_TEXT if grid else TEXT).astype(np.uint8)
        return TokenizedSample(name, tokens, kinds, picture, grid, answer_tokens)

    def _encode(self, text: str) -> list[int]:
        with tokenizing(self.checkpoint):
            ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def all_of(self, samples: Iterable[Sample], left_out: list[str] | None = None) -> list[TokenizedSample]:
        """All samples, tokenized; errors as `tokenize`, or into `left_out` where it is given."""
        wanted = list(samples)
        plain = self.family.vision is None
        chats = [messages_of(sample, plain=plain) for sample in wanted if sample.text is None]
        tokens = {name: text_of_token(self.checkpoint, name) for name in ("bos_token", "eos_token")}
        prompts = iter(render_chats(self.template, chats, tokens=tokens) if chats else ())
        pieces: list[TokenizedSample] = []
        for sample in wanted:
            prompt = next(prompts) if sample.text is None else ""
            try:
                pieces += self._tokenize(sample, prompt)
            except CalibrationError as error:
                where = f"{sample.origin}: " if sample.origin else ""
                if left_out is None:
                    raise CalibrationError(f"{where}{error.message}", hint=error.hint) from error
                left_out.append(f"{where}{error.message}")
        return pieces


def read_template(checkpoint: Checkpoint) -> str:
    """The chat template, from the places where checkpoints keep it; empty where there is none."""
    plain = checkpoint.side_file("chat_template.jinja")
    if plain is not None:
        try:
            return read_small(plain, MAX_TEMPLATE).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"cannot read {plain}: {error}", hint="download it again") from error
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        template: Any = checkpoint.side_json(name).get("chat_template")
        if isinstance(template, list):
            named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
            template = named.get("default")
        if isinstance(template, str) and template:
            return template
    return ""
