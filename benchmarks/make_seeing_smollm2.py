"""Join a vision tower to SmolLM2: a Qwen2.5-VL on real pretrained weights, which sees coloured shapes and digits.

    python -m benchmarks.make_seeing_smollm2 --text SMOLLM2 --out Seeing-SmolLM2-135M

SMOLLM2 is the folder that `benchmarks.make_smollm2` writes. The tower stands beside this script; `scripts.train_tower`
trained it with the text model as it is. Reserved tokens of the text model take the places of Qwen's for images.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from luq_gguf import demo
from scripts.make_demo_checkpoint import CHAT_TEMPLATE
from scripts.make_demo_checkpoint import SYSTEM as DEMO_SYSTEM

TOWER = Path(__file__).with_name("seeing_smollm2_tower.safetensors")
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
START, END, IMAGE, VIDEO, PAD = (
    "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|vision_pad|>",
)  # fmt: skip
CHAT_TOKENS = 3
"""The text model's first added tokens, which chats need; the reserved ones follow."""
VISION = {
    "depth": 6, "hidden_act": "silu", "hidden_size": 192, "intermediate_size": 512, "num_heads": 6, "in_chans": 3,
    "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "window_size": 112,
    "fullatt_block_indexes": [1, 3, 5], "tokens_per_second": 2, "temporal_patch_size": 2,
}  # fmt: skip
KEPT = (
    "hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers",
    "num_key_value_heads", "rms_norm_eps", "rope_theta", "vocab_size", "tie_word_embeddings", "bos_token_id",
    "eos_token_id", "hidden_act", "attention_dropout", "initializer_range", "max_window_layers", "sliding_window",
    "use_sliding_window",
)  # fmt: skip
CARD = """---
license: apache-2.0
---
SmolLM2-135M-Instruct, padded and Q4_1-derived (see its own README.md), with a vision tower that was trained on drawn
scenes of coloured shapes and digits; made by luq_gguf's benchmarks.make_seeing_smollm2.
"""


def vision_tokens(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """The numbers that the tokens of images get, by name, from a `tokenizer.json`."""
    added = sorted(token["id"] for token in tokenizer["added_tokens"])
    return dict(zip((START, END, IMAGE, VIDEO, PAD), added[CHAT_TOKENS:], strict=False))


def config_of(text: Path) -> dict[str, Any]:
    """The flat config of a Qwen2.5-VL with the text model of this folder."""
    config = json.loads((text / "config.json").read_text(encoding="utf-8"))
    numbers = vision_tokens(json.loads((text / "tokenizer.json").read_text(encoding="utf-8")))
    return {key: config[key] for key in KEPT} | {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "torch_dtype": "float16",
        "vision_start_token_id": numbers[START],
        "vision_end_token_id": numbers[END],
        "image_token_id": numbers[IMAGE],
        "video_token_id": numbers[VIDEO],
        "vision_token_id": numbers[PAD],
        "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
        "vision_config": VISION | {"out_hidden_size": config["hidden_size"]},
    }


def join(text: Path, tower: Path, out: Path) -> None:
    """Write the text model of a folder and a tower (safetensors) into `out`, as one checkpoint in the hub's form."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = load_file(text / "model.safetensors")
    tensors |= {f"visual.{name}": value.half() for name, value in load_file(tower).items()}
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    tokenizer, settings = _with_vision_tokens(text)
    template = CHAT_TEMPLATE.replace(DEMO_SYSTEM, SYSTEM)
    files = {
        "config.json": config_of(text),
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": settings | {"chat_template": template},
        "chat_template.json": {"chat_template": template},
    }
    for name, content in files.items():
        (out / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.copy(text / "generation_config.json", out)
    shutil.copy(demo.CHECKPOINT / "preprocessor_config.json", out)
    (out / "README.md").write_text(CARD, encoding="utf-8")


def _with_vision_tokens(text: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A folder's tokenizer and its settings, reserved tokens renamed to those of images."""
    tokenizer, settings = (
        json.loads((text / name).read_text(encoding="utf-8")) for name in ("tokenizer.json", "tokenizer_config.json")
    )
    names = {number: name for name, number in vision_tokens(tokenizer).items()}
    renamed = {token["content"]: names[token["id"]] for token in tokenizer["added_tokens"] if token["id"] in names}
    for token in tokenizer["added_tokens"]:
        token["content"] = renamed.get(token["content"], token["content"])
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {renamed.get(name, name): number for name, number in vocabulary.items()}
    for number, token in settings["added_tokens_decoder"].items():
        token["content"] = names.get(int(number), token["content"])
    return tokenizer, settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tower", type=Path, default=TOWER, help="another one that scripts.train_tower wrote")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    join(options.text, options.tower, options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
