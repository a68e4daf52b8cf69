"""Pico checkpoints of all families are what they say: transformers loads them whole, and both tokenizers agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    LlavaConfig,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.pico_sentencepiece import SPACE
from tests.picos import FAMILIES, TEXT_ONLY, build_family
from tests.published import GEMMA3_4B, LLAVA_7B, LLAVA_13B

VISION = [name for name in FAMILIES if name not in TEXT_ONLY]
QWEN_VISION = ("qwen2.5-vl", "qwen2-vl", "qwen3-vl")
SENTENCEPIECE = ("llava-1.5", "gemma-3")
QUESTION = "What is in the picture?"
SENTENCES = (
    QUESTION, "red green blue  yellow", "two  spaces   three    four", "line\nbreak\n\ntwo\n\n\nthree",
    "na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve 123 \N{GRINNING FACE}", " leading and trailing ", "\ttab", "   ",
    "assistant. You are a helpful", "trianglecirclestarcross",
)  # fmt: skip
IMAGE_CHAT = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
TEXT_CHAT = [{"role": "user", "content": QUESTION}]
RENDERED = {
    "qwen2.5-vl": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
    "<|image_pad|><|vision_end|>What is in the picture?<|im_end|>\n<|im_start|>assistant\n",
    "qwen2-vl": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
    "<|image_pad|><|vision_end|>What is in the picture?<|im_end|>\n<|im_start|>assistant\n",
    "qwen3-vl": "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is in the picture?<|im_end|>\n"
    "<|im_start|>assistant\n",
    "llava-1.5": "USER: <image>\nWhat is in the picture? ASSISTANT:",
    "gemma-3": "<bos><start_of_turn>user\n<start_of_image>What is in the picture?<end_of_turn>\n<start_of_turn>model\n",
    "qwen2.5": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nWhat is in the picture?"
    "<|im_end|>\n<|im_start|>assistant\n",
    "qwen3": "<|im_start|>user\nWhat is in the picture?<|im_end|>\n<|im_start|>assistant\n",
    "llama": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhat is in the picture?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("picos")
    return {name: build_family(parent / name, name, shards=3) for name in FAMILIES}


def load(folder: Path, family: str) -> Any:
    """The model; every weight of the checkpoint has its place, and every place its weight."""
    model_class = AutoModelForCausalLM if family in TEXT_ONLY else AutoModelForImageTextToText
    model, report = model_class.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not any(report.values()), report
    return model.eval()


def text_logits(model: Any, folder: Path) -> torch.Tensor:
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)(QUESTION)["input_ids"]])
    with torch.no_grad():
        return model(input_ids=ids).logits


def require_sane(logits: torch.Tensor) -> None:
    assert torch.isfinite(logits).all()
    assert 0.3 < logits.std() < 3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_loads_whole(folders: dict[str, Path], family: str) -> None:
    folder = folders[family]
    assert len(list(folder.glob("*.safetensors"))) == 3
    require_sane(text_logits(load(folder, family), folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_types_and_shards_differ_in_rounding_alone(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    exact = build_family(tmp_path / "f32", family, dtype="f32")
    half = build_family(tmp_path / "f16", family, dtype="f16", shards=2)
    expected = text_logits(load(exact, family), exact)
    require_sane(expected)
    for folder, allowed in ((half, 0.05), (folders[family], 0.3)):
        torch.testing.assert_close(text_logits(load(folder, family), folder), expected, atol=allowed, rtol=0)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gemma-3"])
def test_tied_embeddings_need_no_head(tmp_path: Path, family: str) -> None:
    folder = build_family(tmp_path / "tied", family, tied=True, layers=2, seed=1)
    model = load(folder, family)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert torch.isfinite(text_logits(model, folder)).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_arguments_give_the_same_bytes(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    again = build_family(tmp_path / "again", family, shards=3)
    other = build_family(tmp_path / "other", family, shards=3, seed=7)
    names = sorted(path.name for path in folders[family].iterdir())
    assert names == sorted(path.name for path in again.iterdir()) == sorted(path.name for path in other.iterdir())
    for name in names:
        content = (folders[family] / name).read_bytes()
        assert content == (again / name).read_bytes()
        assert (content == (other / name).read_bytes()) == (not name.endswith(".safetensors"))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_saved_form_is_the_same_model(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    saved = build_family(tmp_path / "saved", family, form="transformers5", shards=3)
    config = json.loads((saved / "config.json").read_text())
    assert ("text_config" in config) == (family not in TEXT_ONLY)
    assert len(list(saved.glob("*.safetensors"))) > 1
    logits = text_logits(load(folders[family], family), folders[family])
    torch.testing.assert_close(text_logits(load(saved, family), saved), logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_chats_are_rendered(folders: dict[str, Path], family: str) -> None:
    whole = AutoProcessor if family in SENTENCEPIECE else AutoTokenizer
    chat = TEXT_CHAT if family in TEXT_ONLY else IMAGE_CHAT
    text = whole.from_pretrained(folders[family]).apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert text == RENDERED[family]


def test_text_templates_want_plain_strings(folders: dict[str, Path]) -> None:
    """As the hub's do: content in parts is an error, is left out, or is printed as Python would."""
    chat = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    tokenizers = {name: AutoTokenizer.from_pretrained(folders[name]) for name in TEXT_ONLY}
    with pytest.raises(TypeError, match="concatenate"):
        tokenizers["qwen2.5"].apply_chat_template(chat, tokenize=False)
    assert tokenizers["qwen3"].apply_chat_template(chat, tokenize=False) == "<|im_start|>user\n<|im_end|>\n"
    assert "{'type': 'text'" in tokenizers["llama"].apply_chat_template(chat, tokenize=False)


@pytest.mark.parametrize("family", SENTENCEPIECE)
@pytest.mark.parametrize("size", [(70, 60), (20, 90)])
def test_images_change_what_is_said(folders: dict[str, Path], family: str, size: tuple[int, int]) -> None:
    processor, model = AutoProcessor.from_pretrained(folders[family]), load(folders[family], family)
    logits = []
    for color in ("red", "blue"):
        inputs = processor(images=Image.new("RGB", size, color), text=RENDERED[family], return_tensors="pt")
        assert (inputs["input_ids"] == model.config.image_token_id).sum() == {"llava-1.5": 16, "gemma-3": 4}[family]
        with torch.no_grad():
            logits.append(model(**inputs).logits[0, -1])
        require_sane(logits[-1])
    assert (logits[0] - logits[1]).abs().max() > 0.01


@pytest.mark.parametrize("family", QWEN_VISION)
def test_grids_change_what_is_said(folders: dict[str, Path], family: str) -> None:
    """Qwen's whole processor needs torchvision, so that the image's tokens are put in by hand."""
    folder, model = folders[family], load(folders[family], family)
    tokenizer, processor = AutoTokenizer.from_pretrained(folder), Qwen2VLImageProcessorPil.from_pretrained(folder)
    logits = []
    for color in ("red", "blue"):
        inputs = processor(images=Image.new("RGB", (130, 70), color), return_tensors="pt")
        tokens = int(inputs["image_grid_thw"].prod()) // 4
        text = RENDERED[family].replace("<|image_pad|>", "<|image_pad|>" * tokens)
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        kinds = (ids == model.config.image_token_id).int()
        assert kinds.sum() == tokens
        with torch.no_grad():
            logits.append(model(input_ids=ids, mm_token_type_ids=kinds, **inputs).logits[0, -1])
        require_sane(logits[-1])
    assert (logits[0] - logits[1]).abs().max() > 0.01


def test_image_sizes_of_llava(tmp_path: Path) -> None:
    folder = build_family(tmp_path / "large", "llava-1.5", image_size=336, layers=1)
    inputs = AutoProcessor.from_pretrained(folder)(
        images=Image.new("RGB", (500, 300), "red"), text=RENDERED["llava-1.5"], return_tensors="pt"
    )
    assert inputs["pixel_values"].shape == (1, 3, 336, 336)
    with torch.no_grad():
        require_sane(load(folder, "llava-1.5")(**inputs).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_the_tokenizer_as_it_is_written(folders: dict[str, Path], family: str) -> None:
    plain = Tokenizer.from_file(str(folders[family] / "tokenizer.json"))
    tokenizer = AutoTokenizer.from_pretrained(folders[family])
    for sentence in (*SENTENCES, RENDERED[family]):
        ids = plain.encode(sentence).ids
        assert tokenizer(sentence)["input_ids"] == ids
        assert max(ids) < AutoConfig.from_pretrained(folders[family]).get_text_config().vocab_size


@pytest.mark.parametrize("family", SENTENCEPIECE)
def test_both_files_of_a_sentencepiece_tokenizer_agree(folders: dict[str, Path], family: str) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = sentencepiece.SentencePieceProcessor(model_file=str(folders[family] / "tokenizer.model"))
    plain = Tokenizer.from_file(str(folders[family] / "tokenizer.json"))
    roles = (model.unk_id(), model.bos_id(), model.eos_id(), model.pad_id())
    assert roles == {"llava-1.5": (0, 1, 2, -1), "gemma-3": (3, 2, 1, 0)}[family]
    for sentence in SENTENCES:
        assert plain.encode(sentence, add_special_tokens=False).ids == model.encode(sentence)
    assert [model.id_to_piece(rank) for rank in range(len(model))] == [
        plain.id_to_token(rank) for rank in range(len(model))
    ]
    assert any(model.is_byte(rank) for rank in plain.encode(SENTENCES[4]).ids)
    assert (SPACE * 2 in plain.get_vocab()) == (family == "gemma-3")


def test_the_hubs_sparse_configs_have_the_sizes_of_the_models() -> None:
    seven, thirteen = (LlavaConfig(**config).text_config for config in (LLAVA_7B, LLAVA_13B))
    assert (seven.hidden_size, seven.intermediate_size, seven.num_hidden_layers) == (4096, 11008, 32)
    assert (thirteen.hidden_size, thirteen.intermediate_size, thirteen.num_hidden_layers) == (5120, 13824, 40)
    assert (seven.num_key_value_heads, thirteen.num_key_value_heads) == (32, 40)
    gemma = AutoConfig.for_model(**GEMMA3_4B).text_config
    assert (gemma.num_attention_heads, gemma.num_key_value_heads, gemma.head_dim) == (8, 4, 256)
    assert gemma.vocab_size == 262208
