"""The vision tower for a text model that stays as it is: its training, and the checkpoint that the two make."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2ForCausalLM

from benchmarks.make_seeing_smollm2 import KEPT, TOWER, VISION, join
from luq_gguf.demo import scenes
from luq_gguf.job import Settings
from luq_gguf.pipeline import convert
from scripts import train_tower
from scripts.train_tower import Student, positions_of
from tests.pico import hub_config
from tests.pico_files import added_token, byte_level_vocabulary, draw_weights, tokenizer_json, write_checkpoint
from tests.pico_shapes import Decoder, decoder_shapes
from tests.pico_text import QWEN25_TEMPLATE

VISION_NAMES = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
CHAT = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ADDED = dict.fromkeys((*CHAT, "<repo_name>", "<reponame>", "<file_sep>", "<filename>", "<gh_stars>", "<jupyter>"), True)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text model whose tokenizer has reserved tokens, as SmolLM2's has."""
    ids, merges = byte_level_vocabulary(ADDED)
    numbers = dict.fromkeys(VISION_NAMES, 0)
    config = hub_config(ids | numbers, 2, True, "f16")
    config = {key: config[key] for key in KEPT} | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    config["torch_dtype"] = "float16"
    settings = {
        "tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "chat_template": QWEN25_TEMPLATE,
        "added_tokens_decoder": {str(ids[name]): added_token(name, True) for name in ADDED},
    }  # fmt: skip
    files: dict[str, Any] = {
        "config.json": config, "tokenizer.json": tokenizer_json(ids, merges, ADDED), "tokenizer_config.json": settings,
        "generation_config.json": {"eos_token_id": ids["<|im_end|>"]},
    }  # fmt: skip
    shapes = decoder_shapes(Decoder(qkv_bias=True), 2, head=None)
    return write_checkpoint(tmp_path_factory.mktemp("text") / "text", draw_weights(shapes, 0), files, "f16", 1)


def options(text: Path, work: Path) -> Namespace:
    return Namespace(text=text, work=work, word_steps=2, steps=2, batch=2)


@pytest.fixture(scope="module")
def trained(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("trained")
    train_tower.train(options(text, work))
    return work / train_tower.TOWER


@pytest.fixture(scope="module")
def joined(text: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joined") / "Seeing"
    join(text, trained, folder)
    return folder


@pytest.mark.parametrize("steps", [1, 3])
def test_a_training_that_was_interrupted_goes_on_to_the_same_tower(
    text: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    monkeypatch.setattr(train_tower, "SAVED_STEPS", 1)
    see, calls = Student.see, 0

    def interrupted(student: Student, drawn: list[scenes.Scene]) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == steps + 1:
            raise KeyboardInterrupt
        return see(student, drawn)

    with monkeypatch.context() as patch:
        patch.setattr(Student, "see", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_tower.train(options(text, tmp_path))
    assert not (tmp_path / train_tower.TOWER).exists()
    train_tower.train(options(text, tmp_path))
    again, whole = load_file(tmp_path / train_tower.TOWER), load_file(trained)
    assert again.keys() == whole.keys()
    assert all(torch.allclose(again[name].float(), value.float(), atol=1e-4) for name, value in whole.items())


def test_the_tower_learns_while_the_text_model_stays_as_it_is(text: Path) -> None:
    student = Student(text)
    before = {name: value.clone() for name, value in student.model.named_parameters()}
    optimizer = torch.optim.AdamW(student.tower.parameters(), lr=1e-3)
    drawn = [scenes.make_scene(seed) for seed in range(8)]
    losses = []
    for _ in range(12):
        loss, _ = student.word_loss(student.see(drawn), drawn)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    for name, value in student.model.named_parameters():
        assert name.startswith("model.visual.") != torch.equal(value, before[name]), name


def test_answers_cost_what_the_whole_conversation_says(text: Path) -> None:
    """The loss goes on from keys and values of what stands before the image: here each row is run whole."""
    student = Student(text, torch.float32)
    drawn, image = [scenes.make_scene(seed) for seed in (1, 2, 3)], student.talk.image
    total = weight = 0.0
    with torch.no_grad():
        features = student.see(drawn)
        for number, scene in enumerate(drawn):
            ids, learn = student.talk.row(scenes.talk_about(scene, turns=train_tower.TURNS))
            embedded = student.model.get_input_embeddings()(torch.tensor([ids]))
            embedded[0, torch.tensor(ids) == image] = features.reshape(len(drawn), -1, features.shape[-1])[number]
            positions = torch.from_numpy(positions_of(ids, image))[:, None]
            hidden = student.model.model.language_model(inputs_embeds=embedded, position_ids=positions)
            logits = student.model.lm_head(hidden.last_hidden_state)[0, :-1]
            losses = nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
            total += (losses * torch.tensor(learn[1:])).sum().item()
            weight += sum(learn)
        assert student.answer_loss(features, drawn).item() == pytest.approx(total / weight, rel=1e-4)


def test_the_joined_model_reads_texts_like_the_text_model(text: Path, joined: Path) -> None:
    alone = Qwen2ForCausalLM.from_pretrained(text, dtype=torch.float32)
    both = Qwen2_5_VLForConditionalGeneration.from_pretrained(joined, dtype=torch.float32)
    tokens = torch.tensor([[5, 17, 300, 2, 41, 8, 99, 256]])
    with torch.no_grad():
        torch.testing.assert_close(both(tokens).logits, alone(tokens).logits, rtol=1e-4, atol=1e-4)


def test_the_joined_model_is_converted_with_its_eyes(joined: Path, tmp_path: Path) -> None:
    result = convert(str(joined), tmp_path / "out", Settings(calib="shapes", samples=12, low_layers=1, threads=1))
    assert result.mmproj is not None
    assert result.quality is not None
    assert result.quality.groups["image"].tokens > 0


def test_the_tower_that_is_shipped_fits_smollm2() -> None:
    assert TOWER.stat().st_size < 15e6
    tensors = load_file(TOWER)
    assert all(value.isfinite().all() and value.dtype == torch.float16 for value in tensors.values())
    assert tensors["merger.mlp.2.weight"].shape[0] == 768
    blocks = {int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")}
    assert blocks == set(range(int(str(VISION["depth"]))))
