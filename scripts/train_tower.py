"""Teach a text model that stays as it is to see: a vision tower for SmolLM2, on drawn scenes.

    .venv/bin/python -m scripts.train_tower train --text SMOLLM2 --work tower-training
    .venv/bin/python -m scripts.train_tower join --text SMOLLM2 --tower tower-training/state.pt --out Seeing-SmolLM2

SMOLLM2 is the folder that `benchmarks.make_smollm2` writes. First the tower learns to say, at each token of an image,
the text model's own embedding of a word that describes what is there, for which that model need not run; then to
make the frozen model answer questions about the scene. A run that was interrupted goes on from its state in `--work`.
`join` puts tower and text model together as the hub serves Qwen2.5-VL; reserved tokens stand for the image.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn
from transformers import DynamicCache, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from luq_gguf.demo import scenes
from scripts.make_demo_checkpoint import CHAT_TEMPLATE, GRID, IMAGE_TOKENS, MEAN, STD, learning_rate, patches_of
from scripts.make_demo_checkpoint import SYSTEM as DEMO_SYSTEM

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
START, END, IMAGE, VIDEO, PAD = 3, 4, 5, 6, 7
TOKENS = {
    START: "<|vision_start|>", END: "<|vision_end|>", IMAGE: "<|image_pad|>", VIDEO: "<|video_pad|>",
    PAD: "<|vision_pad|>",
}  # fmt: skip
"""Reserved tokens of SmolLM2 that take the places of Qwen's."""
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
HELD_OUT_SEEDS = 1_000_000_000
WORD_BATCH, TURNS = 32, 3
SHARPNESS = 8.0


def config_of(text: dict[str, Any]) -> dict[str, Any]:
    """The flat config of a Qwen2.5-VL with this text model."""
    return {key: text[key] for key in KEPT} | {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "torch_dtype": "float16",
        "vision_start_token_id": START,
        "vision_end_token_id": END,
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_token_id": PAD,
        "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
        "vision_config": VISION | {"out_hidden_size": text["hidden_size"]},
    }


class Talk:
    """Scenes as words to be seen and as conversations."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
        named = (*scenes.COLORS, *scenes.KINDS, "nothing")
        self.words = torch.tensor(sorted({self.word(name) for name in named}))
        self.before = [*self.encode(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"), START]

    def word(self, name: str) -> int:
        """The first token of a word within a text."""
        first: int = self.encode(f" {name}")[0]
        return first

    def seen(self, scene: scenes.Scene) -> list[int]:
        """For each image token a word: of its quadrant the color and the kind in turns, or "nothing"."""
        things = {scenes.PLACES.index(thing.place): thing for thing in scene.things}
        found = []
        for row in range(GRID // 2):
            for column in range(GRID // 2):
                thing = things.get(2 * (row // 2) + column // 2)
                shown = "nothing" if thing is None else thing.kind if column % 2 else thing.color
                found.append(self.word(shown))
        return found

    def row(self, questions: list[scenes.Question]) -> tuple[list[int], list[float]]:
        """Token ids of a conversation about an image, and how much each counts in the loss: 1 an answer."""
        ids, learn = list(self.before), [0.0] * len(self.before)
        for turn, question in enumerate(questions):
            asked = self.encode("<|im_start|>user\n") if turn else [*[IMAGE] * IMAGE_TOKENS, END]
            asked += self.encode(f"{question.text}<|im_end|>\n<|im_start|>assistant\n")
            answer, tail = self.encode(f"{question.answer}<|im_end|>"), self.encode("\n")
            ids += asked + answer + tail
            learn += [0.0] * len(asked) + [1 / len(answer)] * len(answer) + [0.0] * len(tail)
        return ids, learn


def positions_of(ids: list[int]) -> np.ndarray:
    """M-RoPE positions (3, len(ids)) of a conversation with one image."""
    start, side = ids.index(IMAGE), GRID // 2
    grid = np.indices((1, side, side)).reshape(3, -1) + start
    after = np.arange(len(ids) - start - IMAGE_TOKENS) + start + side
    return np.concatenate([np.tile(np.arange(start), (3, 1)), grid, np.tile(after, (3, 1))], axis=1)


class Student:
    """The frozen text model with the tower that learns."""

    def __init__(self, text: Path) -> None:
        config = config_of(json.loads((text / "config.json").read_text()))
        self.model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config))
        weights = load_file(text / "model.safetensors")
        state = {name.replace("model.", "model.language_model.", 1): value.float() for name, value in weights.items()}
        missing, unexpected = self.model.load_state_dict(state, strict=False)
        assert not unexpected
        assert all("visual" in name or "lm_head" in name for name in missing)
        self.model.tie_weights()
        self.model.requires_grad_(False)
        self.model.model.language_model.to(torch.bfloat16)
        self.tower = self.model.model.visual.requires_grad_(True)
        self.talk = Talk(Tokenizer.from_file(str(text / "tokenizer.json")))
        self.before = DynamicCache()
        with torch.no_grad():
            self.model.model.language_model(torch.tensor([self.talk.before]), past_key_values=self.before)

    def see(self, drawn: list[scenes.Scene]) -> torch.Tensor:
        patches = patches_of([np.asarray(scenes.draw_scene(scene)) for scene in drawn])
        features: torch.Tensor = self.tower(
            patches, grid_thw=torch.tensor([[1, GRID, GRID]] * len(drawn))
        ).pooler_output
        return features

    def word_loss(self, features: torch.Tensor, drawn: list[scenes.Scene]) -> tuple[torch.Tensor, float]:
        """How far features are from the embeddings of the words that they are to say, and the share that is nearest."""
        table = self.model.get_input_embeddings().weight.float()
        targets = torch.tensor([word for scene in drawn for word in self.talk.seen(scene)])
        known, place = table[self.talk.words], torch.searchsorted(self.talk.words, targets)
        features = features.float()
        scores = -torch.cdist(features, known).square() / (known.var(dim=1).mean() * features.shape[1])
        naming = nn.functional.cross_entropy(SHARPNESS * scores, place)
        apart = (features - table[targets]).square().mean() / known.square().mean()
        return naming + apart, float((scores.argmax(1) == place).float().mean())

    def prefix(self, scenes_drawn: int) -> DynamicCache:
        """Keys and values of what stands before every image, which no tower changes, for so many rows."""
        rows: Iterable[tuple[torch.Tensor, torch.Tensor]] = (
            (layer.keys.expand(scenes_drawn, -1, -1, -1), layer.values.expand(scenes_drawn, -1, -1, -1))
            for layer in self.before.layers
        )
        return DynamicCache(rows)

    def answer_loss(self, features: torch.Tensor, drawn: list[scenes.Scene]) -> torch.Tensor:
        """Nats a token of the answers, each answer counting alike."""
        rows = [self.talk.row(scenes.talk_about(scene, turns=TURNS)) for scene in drawn]
        start = len(self.talk.before)
        length = max(len(ids) for ids, _ in rows)
        ids, learn = torch.zeros((len(rows), length), dtype=torch.long), torch.zeros((len(rows), length))
        positions = torch.zeros((3, len(rows), length), dtype=torch.long)
        for number, (tokens, weights) in enumerate(rows):
            ids[number, : len(tokens)], learn[number, : len(tokens)] = torch.tensor(tokens), torch.tensor(weights)
            positions[:, number, : len(tokens)] = torch.from_numpy(positions_of(tokens))
        ids, learn, positions = ids[:, start:], learn[:, start:], positions[:, :, start:]
        embedded = self.model.get_input_embeddings()(ids)
        embedded = embedded.masked_scatter((ids == IMAGE).unsqueeze(-1), features.to(embedded.dtype))
        run = self.model.model.language_model
        hidden = run(
            inputs_embeds=embedded, position_ids=positions, past_key_values=self.prefix(len(rows))
        ).last_hidden_state
        wanted = learn[:, 1:] > 0
        logits = self.model.lm_head(hidden[:, :-1][wanted]).float()
        losses = nn.functional.cross_entropy(logits, ids[:, 1:][wanted], reduction="none")
        return (losses * learn[:, 1:][wanted]).sum() / learn.sum()


def train(options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    options.work.mkdir(parents=True, exist_ok=True)
    student, state, step = Student(options.text), options.work / "state.pt", 0
    optimizer = torch.optim.AdamW(student.tower.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.02)
    if state.exists():
        saved = torch.load(state, weights_only=True)
        student.tower.load_state_dict(saved["tower"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
    started = time.monotonic()
    while step < options.word_steps + options.steps:
        words, later = step < options.word_steps, step - options.word_steps
        rate = (
            learning_rate(0.7 * step / options.word_steps, step, 1.5e-3)
            if words
            else learning_rate(later / options.steps, later, 6e-4)
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        size = WORD_BATCH if words else options.batch
        seeds = np.random.default_rng(step).integers(0, HELD_OUT_SEEDS, size).tolist()
        drawn = [scenes.make_scene(seed) for seed in seeds]
        with torch.autocast("cpu", torch.bfloat16):
            features = student.see(drawn)
            loss, right = student.word_loss(features, drawn)
            if not words:
                loss = student.answer_loss(features, drawn) + 0.1 * loss
        loss.backward()
        nn.utils.clip_grad_norm_(student.tower.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 25 == 0:
            what = "words" if words else "answers"
            print(
                f"{what} {step} loss {loss.item():.3f} right {right:.3f} {time.monotonic() - started:.0f} s", flush=True
            )
            partial = state.with_suffix(".partial")
            torch.save(
                {"tower": student.tower.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, partial
            )
            partial.replace(state)


def join(options: argparse.Namespace) -> None:
    """Write tower and text model as one checkpoint."""
    options.out.mkdir(parents=True, exist_ok=True)
    config = config_of(json.loads((options.text / "config.json").read_text()))
    tower = torch.load(options.tower, weights_only=True)["tower"]
    tensors = load_file(options.text / "model.safetensors")
    tensors |= {f"visual.{name}": value.half().contiguous() for name, value in tower.items()}
    save_file(tensors, options.out / "model.safetensors", {"format": "pt"})
    template = CHAT_TEMPLATE.replace(DEMO_SYSTEM, SYSTEM)
    tokenizer, settings = (
        json.loads((options.text / name).read_text()) for name in ("tokenizer.json", "tokenizer_config.json")
    )
    renamed = {token["content"]: TOKENS[token["id"]] for token in tokenizer["added_tokens"] if token["id"] in TOKENS}
    for token in tokenizer["added_tokens"]:
        token["content"] = renamed.get(token["content"], token["content"])
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {renamed.get(name, name): number for name, number in vocabulary.items()}
    for number, token in settings["added_tokens_decoder"].items():
        token["content"] = TOKENS.get(int(number), token["content"])
    files = {
        "config.json": config,
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": settings | {"chat_template": template},
        "chat_template.json": {"chat_template": template},
        "preprocessor_config.json": {
            "min_pixels": 3136, "max_pixels": 401408, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
            "image_mean": MEAN.astype(float).round(8).tolist(), "image_std": STD.astype(float).round(8).tolist(),
            "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
        },
    }  # fmt: skip
    for name, content in files.items():
        (options.out / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.copy(options.text / "generation_config.json", options.out)
    print(f"wrote {options.out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train")
    training.add_argument("--text", type=Path, required=True)
    training.add_argument("--work", type=Path, required=True)
    training.add_argument("--word-steps", type=int, default=300)
    training.add_argument("--steps", type=int, default=1200)
    training.add_argument("--batch", type=int, default=6)
    training.set_defaults(run=train)
    joining = commands.add_parser("join")
    joining.add_argument("--text", type=Path, required=True)
    joining.add_argument("--tower", type=Path, required=True, help="the state that `train` keeps")
    joining.add_argument("--out", type=Path, required=True)
    joining.set_defaults(run=join)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
