"""Write a Qwen2.5-VL checkpoint of a published model's exact shapes with random weights, as the hub serves it.

    python -m benchmarks.make_checkpoint --out Qwen2.5-VL-7B-random
    python -m benchmarks.make_checkpoint --model Qwen2.5-VL-3B --out DIR
    python -m benchmarks.make_checkpoint --layers 4 --out DIR

It makes no sense of images and texts, but costs what the real one costs. Weights are seeded, their scale keeps
activations as large as in a trained model; the tokenizer is the demo model's, its special tokens at the published
numbers, filled up to the vocabulary with tokens that no text has.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from luq_gguf import demo
from luq_gguf.artifacts import require_space
from luq_gguf.cli.progress import show_progress
from luq_gguf.progress import Progress, silent
from tests.published import PUBLISHED

MODELS = [name for name in PUBLISHED if name.startswith("Qwen2.5-VL")]
SHARD_BYTES = 2 << 30
FIRST_SPECIAL = 480
"""The first of the demo tokenizer's special tokens; the published one's first is its config's bos_token_id."""
UNCHANGED = ("chat_template.json", "merges.txt")
MOST_PIXELS = 12_845_056
"""Of the published preprocessor; the demo's are fewer."""
HUB_NAMES = {"model.visual.": "visual.", "model.language_model.": "model."}


def make_checkpoint(
    config: Mapping[str, Any], out: Path, *, seed: int = 0, shard_bytes: int = SHARD_BYTES, progress: Progress = silent
) -> None:
    """Write a checkpoint of a config with random weights in bf16 into `out`, in shards of about `shard_bytes`."""
    out.mkdir(parents=True, exist_ok=True)
    shapes = dict(sorted(hub_shapes(config).items()))
    total = 2 * sum(shape.numel() for shape in shapes.values())
    require_space(out, total, "the checkpoint")
    shards = list(_shards(shapes, shard_bytes))
    places: dict[str, str] = {}
    done = 0
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {}
        for name in names:
            progress("write weights", done, total)
            tensors[name] = draw_weight(name, shapes[name], seed)
            done += tensors[name].nbytes
        save_file(tensors, out / file, {"format": "pt"})
        places |= dict.fromkeys(names, file)
    progress("write weights", total, total)
    files = {"config.json": dict(config), **_side_files(config)}
    files["model.safetensors.index.json"] = {"metadata": {"total_size": total}, "weight_map": places}
    for name, content in files.items():
        (out / name).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    for name in UNCHANGED:
        shutil.copy(demo.CHECKPOINT / name, out)


def hub_shapes(config: Mapping[str, Any]) -> dict[str, torch.Size]:
    """Names and shapes of all tensors, as the hub's checkpoints have them."""
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config))
    found = {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        prefix = next((prefix for prefix in HUB_NAMES if name.startswith(prefix)), "")
        found[HUB_NAMES.get(prefix, "") + name.removeprefix(prefix)] = value.shape
    return found


def draw_weight(name: str, shape: torch.Size, seed: int) -> torch.Tensor:
    """A tensor that depends on its name and the seed only: gains around 1, small biases, rows of matrices of norm 1."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    random = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    values = torch.empty(shape, dtype=torch.float32).normal_(generator=random)
    if len(shape) == 1:
        is_gain = "norm" in name or name.endswith("ln_q.weight")
        return (1 + 0.1 * values if is_gain else 0.02 * values).bfloat16()
    scale = 0.02 if name.endswith("embed_tokens.weight") else shape[1:].numel() ** -0.5
    return values.mul_(scale).bfloat16()


def _shards(shapes: Mapping[str, torch.Size], most: int) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        if names and size + 2 * shape.numel() > most:
            yield names
            names, size = [], 0
        names.append(name)
        size += 2 * shape.numel()
    yield names


def _side_files(config: Mapping[str, Any]) -> dict[str, Any]:
    """The demo's files beside config and weights, special tokens at the config's numbers, fillers before them."""
    first = config["bos_token_id"]

    def moved(number: int) -> int:
        return number + first - FIRST_SPECIAL

    tokenizer, settings, generation, pictures = (
        json.loads((demo.CHECKPOINT / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("tokenizer", "tokenizer_config", "generation_config", "preprocessor_config")
    )
    vocabulary = tokenizer["model"]["vocab"] | {f"<filler {number}>": number for number in range(FIRST_SPECIAL, first)}
    for token in tokenizer["added_tokens"]:
        token["id"] = moved(token["id"])
    tokenizer["model"]["vocab"] = vocabulary
    decoder = settings["added_tokens_decoder"]
    settings["added_tokens_decoder"] = {str(moved(int(number))): token for number, token in decoder.items()}
    for key, value in generation.items():
        if key.endswith("token_id"):
            generation[key] = [moved(each) for each in value] if isinstance(value, list) else moved(value)
    return {
        "tokenizer.json": tokenizer, "vocab.json": vocabulary, "tokenizer_config.json": settings,
        "generation_config.json": generation, "preprocessor_config.json": pictures | {"max_pixels": MOST_PIXELS},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="Qwen2.5-VL-7B", help="whose shapes it has")
    parser.add_argument("--layers", type=int, help="only so many decoder layers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    config = PUBLISHED[options.model][0]
    if options.layers:
        config = config | {"num_hidden_layers": options.layers, "max_window_layers": options.layers}
    with show_progress() as progress:
        make_checkpoint(config, options.out, seed=options.seed, progress=progress)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
