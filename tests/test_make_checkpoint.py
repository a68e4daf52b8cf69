"""The script that makes checkpoints of real sizes: shapes, tokens and bytes are those of the hub's form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tokenizers import Tokenizer

from benchmarks.make_checkpoint import FIRST_SPECIAL, MODELS, hub_shapes, make_checkpoint
from luq_gguf import demo
from luq_gguf.checkpoint import Checkpoint
from luq_gguf.families import find_family
from luq_gguf.job import Settings
from luq_gguf.pipeline import convert
from tests.published import PUBLISHED, QWEN25_VL_7B, merged

SMALL = merged(
    QWEN25_VL_7B, hidden_size=256, intermediate_size=512, num_hidden_layers=2, max_window_layers=2,
    num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    rope_scaling={"type": "mrope", "mrope_section": [8, 12, 12]},
    vision_config={
        "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "out_hidden_size": 256,
        "fullatt_block_indexes": [1],
    },
)  # fmt: skip
TALK = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>How many objects?<|im_end|>\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "Qwen2.5-VL-random"
    make_checkpoint(SMALL, folder, shard_bytes=1 << 20)
    return folder


@pytest.mark.parametrize("model", MODELS)
def test_shapes_are_those_of_the_published_model(model: str) -> None:
    config, text, rest = PUBLISHED[model]
    assert sum(shape.numel() for shape in hub_shapes(config).values()) == text + rest


def test_it_is_a_sharded_checkpoint_that_converts(made: Path, tmp_path: Path) -> None:
    assert len(list(made.glob("model-*-of-*.safetensors"))) > 2
    checkpoint = Checkpoint.open(made)
    family = find_family(checkpoint.config)
    names = {tensor.source for tensor in family.text_tensors()}
    assert names < checkpoint.tensors.keys()
    assert checkpoint.tensors.keys() == hub_shapes(SMALL).keys()
    settings = Settings(calib="shapes", samples=8, low_layers=1, threads=1, evaluate=False)
    result = convert(str(made), tmp_path / "out", settings)
    assert result.mmproj is not None
    assert result.model.stat().st_size == result.plan.size_bytes


def test_the_same_seed_gives_the_same_bytes(made: Path, tmp_path: Path) -> None:
    make_checkpoint(SMALL, tmp_path / "again", shard_bytes=1 << 20)
    make_checkpoint(SMALL, tmp_path / "other", shard_bytes=1 << 20, seed=1)
    for path in made.iterdir():
        same = path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
        assert same, path.name
    file = min(made.glob("model-*"))
    for name, tensor in load_file(file).items():
        assert not tensor.equal(load_file(tmp_path / "other" / file.name)[name])


def test_text_has_the_demos_tokens_and_special_ones_have_the_published_numbers(made: Path) -> None:
    mine, demos = (Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (made, demo.CHECKPOINT))
    shift = SMALL["bos_token_id"] - FIRST_SPECIAL
    expected = [token + shift if token >= FIRST_SPECIAL else token for token in demos.encode(TALK).ids]
    assert mine.encode(TALK).ids == expected
    assert SMALL["image_token_id"] in expected
    vocabulary = json.loads((made / "vocab.json").read_text())
    assert len(vocabulary) == SMALL["bos_token_id"]
