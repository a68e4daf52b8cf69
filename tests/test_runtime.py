"""What llama.cpp sees and says through `Runtime`, held against transformers in float32 on the same pixels."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

import luq_gguf
from luq_gguf.activations import analyze
from luq_gguf.bundle import bundle
from luq_gguf.calibration import load_calibration
from luq_gguf.checkpoint import Checkpoint
from luq_gguf.demo import CHECKPOINT, FRESH_SEED
from luq_gguf.demo.scenes import QUESTION_KINDS, ask_about, draw_scene, make_scene
from luq_gguf.errors import GGUFError, RunError
from luq_gguf.families import find_family
from luq_gguf.images import Limits, fit_to_grid, grid_limits, patchify
from luq_gguf.runtime import BATCH_TOKENS, Runtime
from tests.exported import export_both

SIZES = [(112, 112), (168, 84), (84, 168)]
QUESTION = "What is in the picture?"
WORDS = "how many red circles, blue squares and green stars are there?"


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A drawn scene, squeezed: wide and tall images have something to see too."""
    return draw_scene(make_scene(FRESH_SEED + seed)).resize((width, height), Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class Original:
    """A checkpoint in transformers, and where it lies."""

    folder: Path
    model: Qwen2_5_VLForConditionalGeneration

    def prompt(self, question: str, image_tokens: int) -> torch.Tensor:
        """The model's own chat template, with as many places for the image as it takes."""
        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        template = tokenizer.chat_template or json.loads((self.folder / "chat_template.json").read_text())
        if isinstance(template, dict):
            template = template["chat_template"]
        content = [{"type": "image"}] * bool(image_tokens) + [{"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, tokenize=False
        )
        assert text.count("<|image_pad|>") == bool(image_tokens)
        text = text.replace("<|image_pad|>", "<|image_pad|>" * image_tokens)
        return tokenizer(text, return_tensors="pt").input_ids

    def logits(self, question: str, image: Image.Image | None, answer: list[int] = []) -> NDArray[np.float32]:  # noqa: B006
        """Of the next token, and after every token of `answer`."""
        vision, tokens = {}, 0
        if image is not None:
            checkpoint = Checkpoint.open(self.folder)
            family = find_family(checkpoint.config, checkpoint)
            fitted = fit_to_grid(image, grid_limits(family.image_grid))
            assert fitted.size == image.size
            pixels, (rows, columns) = patchify(fitted, family)
            tokens = rows * columns // 4
            vision = {"pixel_values": torch.from_numpy(pixels), "image_grid_thw": torch.tensor([[1, rows, columns]])}
        ids = torch.cat([self.prompt(question, tokens), torch.tensor([answer], dtype=torch.long)], dim=1)
        kinds = (ids == self.model.config.image_token_id).int()
        with torch.inference_mode():
            found = self.model(input_ids=ids, mm_token_type_ids=kinds, use_cache=False, **vision).logits
        return found[0, -1 - len(answer) :].numpy()


def cosine(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    left, right = left.astype(np.float64), right.astype(np.float64)
    return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))


@pytest.fixture(scope="module", params=["pico", "demo"])
def original(request: pytest.FixtureRequest, pico_checkpoint: Path) -> Original:
    folder = pico_checkpoint if request.param == "pico" else CHECKPOINT
    return Original(folder, Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval())


@pytest.fixture(scope="module", params=["f32", "f16", "bf16"])
def files(original: Original, request: pytest.FixtureRequest, tmp_path_factory) -> tuple[Path, Path]:
    return export_both(original.folder, tmp_path_factory.mktemp("files"), request.param)


@pytest.fixture(scope="module")
def runtime(files: tuple[Path, Path]) -> Iterator[Runtime]:
    with Runtime(*files, threads=1, context=1024) as opened:
        yield opened


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_it_sees_what_transformers_sees(original: Original, runtime: Runtime, size: tuple[int, int]) -> None:
    image = picture(*size)
    found, wanted = runtime.start(QUESTION, image), original.logits(QUESTION, image)[0]
    assert found.dtype == np.float32
    assert found.shape == wanted.shape
    assert cosine(found, wanted) > 0.999
    other = picture(*size, seed=3)
    assert np.abs(found - runtime.start(QUESTION, other)).max() > 5 * np.abs(found - wanted).max()


def test_an_answer_is_followed_token_by_token(original: Original, runtime: Runtime) -> None:
    image = picture(112, 112)
    answer = runtime.tokenize("red circle")
    runtime.start(QUESTION, image)
    at_once = runtime.extend(answer)
    wanted = original.logits(QUESTION, image, answer)[1:]
    assert at_once.shape == wanted.shape
    assert min(map(cosine, at_once, wanted)) > 0.999
    runtime.start(QUESTION, image)
    one_by_one = np.concatenate([runtime.extend([token]) for token in answer])
    np.testing.assert_allclose(at_once, one_by_one, atol=0.05)


def test_a_text_needs_no_image(original: Original, runtime: Runtime) -> None:
    assert cosine(runtime.start(WORDS), original.logits(WORDS, None)[0]) > 0.999


@pytest.fixture(scope="module")
def demo_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return export_both(CHECKPOINT, tmp_path_factory.mktemp("demo"), "f16")


def test_the_reference_is_what_the_16_bit_file_says(demo_files: tuple[Path, Path]) -> None:
    checkpoint = Checkpoint.open(CHECKPOINT)
    calibration = load_calibration("shapes", samples=24)
    reference = analyze(
        checkpoint, find_family(checkpoint.config, checkpoint), calibration, compute_type="f32"
    ).reference
    assert {sample.picture is None for sample in calibration.held_out} == {True, False}
    with Runtime(*demo_files, threads=1, context=1024) as runtime:
        for number, sample in enumerate(calibration.held_out):
            places = slice(reference.starts[number], reference.starts[number + 1])
            answer = reference.answers[places].tolist()
            logits = np.stack(
                [runtime.start(sample.question, sample.picture and sample.picture.read()), *runtime.extend(answer[:-1])]
            )
            said = torch.from_numpy(logits).double().log_softmax(dim=1).numpy()
            top = reference.top[places].astype(np.int64)
            kept = reference.log_probabilities[places]
            sure = kept[:, 0] - kept[:, 1] > 0.1
            assert (said.argmax(axis=1) == top[:, 0])[sure].all()
            found = np.take_along_axis(said, top, axis=1)
            likely = kept > np.log(1e-3)
            np.testing.assert_allclose(found[likely], kept[likely], atol=0.1)
            np.testing.assert_allclose(1 - np.exp(found).sum(axis=1), reference.rest[places], atol=1e-3)


def test_a_bundle_and_a_pair_open_as_a_llama_that_sees(demo_files: tuple[Path, Path], tmp_path: Path) -> None:
    text, vision = demo_files
    bundle(text, vision, tmp_path / "both.gguf")
    scene = make_scene(FRESH_SEED + 1)
    image = draw_scene(scene)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    questions = [ask_about(scene, kind, random.Random(0)).text for kind in QUESTION_KINDS]
    with Runtime(text, vision, threads=1) as runtime:
        wanted = [runtime.answer(question, image) for question in questions]
    with Runtime(tmp_path / "both.gguf", threads=1) as runtime:
        assert [runtime.answer(question, image) for question in questions] == wanted
    assert len(set(wanted)) > 2
    for files in ((tmp_path / "both.gguf",), (text, vision)):
        llama = luq_gguf.open_model(*files, n_threads=1, n_threads_batch=1)
        answers = []
        for question in questions:
            content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
            reply = llama.create_chat_completion(
                [{"role": "user", "content": content}], temperature=0, repeat_penalty=1.0, max_tokens=64
            )
            answers.append(reply["choices"][0]["message"]["content"].strip())
        llama.close()
        assert answers == wanted


def test_a_prompt_longer_than_a_batch_is_evaluated(demo_files: tuple[Path, Path]) -> None:
    with Runtime(demo_files[0], threads=1, context=3 * BATCH_TOKENS) as runtime:
        runtime.start("red")
        tokens = runtime.tokenize("red circle ") * BATCH_TOKENS
        assert runtime.extend(tokens[: BATCH_TOKENS + 5]).shape == (BATCH_TOKENS + 5, runtime.vocabulary)
        with pytest.raises(RunError, match="the context has"):
            runtime.extend(tokens[: 2 * BATCH_TOKENS])


def test_a_prompt_beyond_the_context_is_refused(demo_files: tuple[Path, Path]) -> None:
    with Runtime(*demo_files, threads=1, context=64) as runtime:
        with pytest.raises(RunError, match="the context has 64"):
            runtime.start("red circle " * 100, picture(112, 112))
        assert runtime.answer("how many?", picture(56, 112), max_tokens=3)


def test_an_image_takes_the_room_of_its_tokens_not_of_its_positions(demo_files: tuple[Path, Path]) -> None:
    """Its 80 tokens stand at 10 positions."""
    with Runtime(*demo_files, threads=1, context=256) as runtime:
        runtime.start(QUESTION, picture(280, 224))
        text = len(runtime.tokenize(QUESTION))
        assert 80 + text < runtime.prompt_tokens < 80 + text + 40
        rest = runtime.tokenize("red") * (256 - runtime.prompt_tokens)
        assert runtime.extend(rest).shape == (len(rest), runtime.vocabulary)
        with pytest.raises(RunError, match="needs 257 tokens, the context has 256"):
            runtime.extend(rest[:1])


def test_an_image_without_a_vision_part_is_refused(demo_files: tuple[Path, Path]) -> None:
    with Runtime(demo_files[0], threads=1) as runtime, pytest.raises(RunError, match="--mmproj"):
        runtime.start(QUESTION, picture(112, 112))


def test_wrong_files_are_refused_by_name(demo_files: tuple[Path, Path], tmp_path: Path) -> None:
    text, vision = demo_files
    (tmp_path / "noise.gguf").write_bytes(b"GGUF" + bytes(range(200)))
    (tmp_path / "cut.gguf").write_bytes(text.read_bytes()[:-4000])
    for broken in ("noise.gguf", "cut.gguf", "missing.gguf"):
        with pytest.raises(GGUFError, match=broken):
            Runtime(tmp_path / broken)
        with pytest.raises(GGUFError, match=broken):
            Runtime(text, tmp_path / broken)
        with pytest.raises(GGUFError, match=broken):
            luq_gguf.open_model(tmp_path / broken)
    with pytest.raises(GGUFError, match="is a vision part, not a text model"):
        Runtime(vision)
    with pytest.raises(RunError, match=text.name):
        Runtime(text, text)
    with Runtime(*demo_files, threads=1) as runtime:
        assert runtime.answer(QUESTION, picture(112, 112), max_tokens=2)


def test_images_are_made_smaller_as_in_a_calibration_with_the_same_limit(demo_files: tuple[Path, Path]) -> None:
    image = picture(280, 224)
    fitted = fit_to_grid(image, Limits(28, 8 * 784, 20 * 784))
    assert fitted.width * fitted.height == 20 * 784
    with Runtime(*demo_files, threads=1, image_tokens=20) as small, Runtime(*demo_files, threads=1) as full:
        found = small.start("what color?", image)
        assert np.array_equal(found, full.start("what color?", fitted))
        assert not np.array_equal(found, full.start("what color?", image))
