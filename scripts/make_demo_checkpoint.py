"""Train the demo checkpoint: a small Qwen2.5-VL that sees coloured shapes and digits.

    .venv/bin/python scripts/make_demo_checkpoint.py --work demo-training

Everything is made here: the pictures and conversations are drawn by `luq_gguf.demo.scenes`, the
tokenizer is trained on them, the weights start from a seed. A run that was interrupted goes on from
its last state in `--work`. At the end the checkpoint is written to `--out` in the form that the
Hugging Face hub serves for Qwen2.5-VL.

The vision tower is first taught to name what each image token shows; the whole model then learns to
answer, with the same auxiliary heads on the image tokens (after the vision tower, and after decoder
layer 3 with the token's quadrant added) so that shapes are not learned last. The second pair of heads
also names the words for shapes, digits and colors in texts, so that a word and what it stands for in
the picture lie close together. All heads are thrown away. To find a thing by its name ("where is the
star?") is learned last of all, so a second stage of `--lookup-steps`, with the vision tower as it is,
asks mostly that.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from luq_gguf.demo import scenes

VOCABULARY = 512
BPE_TOKENS = 480
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
SYSTEM = "You are a helpful assistant."
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n" + SYSTEM + "<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)
GRID = scenes.SIDE // 14
IMAGE_TOKENS = (GRID // 2) ** 2
PROBED_LAYER = 3
HELD_OUT_SEEDS = 1_000_000_000


def hub_config(ids: dict[str, int]) -> dict[str, object]:
    """The flat `config.json` of the hub's Qwen2.5-VL checkpoints, at demo size."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "hidden_act": "silu",
        "hidden_size": 256,
        "initializer_range": 0.02,
        "intermediate_size": 768,
        "max_position_embeddings": 2048,
        "max_window_layers": 12,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": 4,
        "num_hidden_layers": 12,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 2048,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 4,
            "hidden_act": "silu",
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "in_chans": 3,
            "out_hidden_size": 256,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [1, 3],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
        "vocab_size": VOCABULARY,
    }


def train_tokenizer() -> Tokenizer:
    """Byte-level BPE with Qwen's pre-tokenizer pattern, its special tokens after the merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(pattern=_regex(PRETOKENIZE_REGEX), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BPE_TOKENS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def _regex(pattern: str) -> object:
    from tokenizers import Regex

    return Regex(pattern)


def _corpus() -> Iterator[str]:
    for seed in range(3000):
        yield f"system\n{SYSTEM}\nuser\nassistant\n"
        for question in (*scenes.talk_about(scenes.make_scene(seed)), *scenes.talk_without_picture(seed)):
            yield question.text
            yield question.answer


def patches_of(pictures: list[np.ndarray]) -> torch.Tensor:
    """Pictures (n, 112, 112, 3) uint8 -> Qwen2.5-VL patches (n * 64, 1176), grouped by merged token."""
    pixels = (np.stack(pictures).astype(np.float32) / 255.0 - MEAN) / STD
    n, half = len(pictures), GRID // 2
    tiles = pixels.reshape(n, half, 2, 14, half, 2, 14, 3).transpose(0, 1, 4, 2, 5, 7, 3, 6)
    tiles = np.broadcast_to(tiles[:, :, :, :, :, :, None], (*tiles.shape[:6], 2, 14, 14))
    return torch.from_numpy(tiles.reshape(n * GRID * GRID, -1).copy())


def labels_of(scene: scenes.Scene) -> tuple[list[int], list[int]]:
    """Kind and color index of the quadrant of each of the 16 image tokens; 0 means empty."""
    kinds, colors = [0] * 4, [0] * 4
    for thing in scene.things:
        place = scenes.PLACES.index(thing.place)
        kinds[place] = 1 + scenes.KINDS.index(thing.kind)
        colors[place] = 1 + list(scenes.COLORS).index(thing.color)
    quadrants = quadrants_of_tokens()
    return [kinds[q] for q in quadrants], [colors[q] for q in quadrants]


def quadrants_of_tokens() -> list[int]:
    return [2 * (row // 2) + column // 2 for row in range(GRID // 2) for column in range(GRID // 2)]


class Conversations:
    """Draws batches of conversations, padded on the right, with M-RoPE positions."""

    def __init__(self, tokenizer: Tokenizer, text_only: float = 0.15) -> None:
        self.encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
        self.image_pad = tokenizer.token_to_id("<|image_pad|>")
        self.pad = tokenizer.token_to_id("<|endoftext|>")
        self.text_only = text_only
        self.named_kinds = self._named(tokenizer, scenes.KINDS)
        self.named_colors = self._named(tokenizer, tuple(scenes.COLORS))

    @staticmethod
    def _named(tokenizer: Tokenizer, words: tuple[str, ...]) -> torch.Tensor:
        """For every token: 1 + the index of the word it spells, or -100."""
        table = torch.full((VOCABULARY,), -100)
        for index, word in enumerate(words):
            for spelled in (word, f" {word}"):
                ids = tokenizer.encode(spelled, add_special_tokens=False).ids
                table[ids[-1]] = 1 + index if tokenizer.decode(ids[-1:]).strip() == word else -100
        return table

    def tokens_of(self, questions: list[scenes.Question], with_image: bool) -> tuple[list[int], list[float]]:
        """Token ids of a conversation, and how much each counts in the loss: 1 a question, over its answer."""
        ids = self.encode(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n")
        learn = [0.0] * len(ids)
        for turn, question in enumerate(questions):
            see = with_image and turn == 0
            image = "<|vision_start|>" + "<|image_pad|>" * IMAGE_TOKENS + "<|vision_end|>" if see else ""
            prompt = self.encode(f"<|im_start|>user\n{image}{question.text}<|im_end|>\n<|im_start|>assistant\n")
            answer = self.encode(f"{question.answer}<|im_end|>")
            tail = self.encode("\n")
            ids += prompt + answer + tail
            learn += [0.0] * len(prompt) + [1 / len(answer)] * len(answer) + [0.0] * len(tail)
        return ids, learn

    def positions_of(self, ids: list[int]) -> np.ndarray:
        """M-RoPE positions (3, len(ids)) of a conversation with at most one 4x4 image."""
        if self.image_pad not in ids:
            return np.tile(np.arange(len(ids)), (3, 1))
        start, side = ids.index(self.image_pad), GRID // 2
        grid = np.indices((1, side, side)).reshape(3, -1) + start
        after = np.arange(len(ids) - start - IMAGE_TOKENS) + start + side
        return np.concatenate([np.tile(np.arange(start), (3, 1)), grid, np.tile(after, (3, 1))], axis=1)

    def batch(self, seed: int, size: int, *, lookup: bool = False) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng(seed)
        rows, pictures, kinds, colors = [], [], [], []
        for number in rng.integers(0, HELD_OUT_SEEDS, size).tolist():
            if rng.random() < self.text_only:
                rows.append(self.tokens_of(scenes.talk_without_picture(number), with_image=False))
                continue
            scene = scenes.make_scene(number)
            talk = scenes.look_up(scene) if lookup else scenes.talk_about(scene)
            rows.append(self.tokens_of(talk, with_image=True))
            pictures.append(np.asarray(scenes.draw_scene(scene)))
            kind, color = labels_of(scene)
            kinds.append(kind)
            colors.append(color)
        return self._pad(rows) | {
            "patches": patches_of(pictures),
            "grid": torch.tensor([[1, GRID, GRID]] * len(pictures)),
            "kinds": torch.tensor(kinds).flatten(),
            "colors": torch.tensor(colors).flatten(),
            "named_kinds": self.named_kinds,
            "named_colors": self.named_colors,
        }

    def _pad(self, rows: list[tuple[list[int], list[float]]]) -> dict[str, torch.Tensor]:
        length = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), length), self.pad)
        learn = torch.zeros((len(rows), length))
        positions = torch.zeros((3, len(rows), length), dtype=torch.long)
        for row, (tokens, mask) in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            learn[row, : len(tokens)] = torch.tensor(mask)
            positions[:, row, : len(tokens)] = torch.from_numpy(self.positions_of(tokens))
        return {"ids": ids, "learn": learn, "positions": positions}


class Trainee(nn.Module):
    """The model with its auxiliary heads."""

    def __init__(self, config: Qwen2_5_VLConfig) -> None:
        super().__init__()
        self.model = Qwen2_5_VLForConditionalGeneration(config)
        width = config.text_config.hidden_size
        outputs = 1 + len(scenes.KINDS) + 1 + len(scenes.COLORS)
        self.see_head = nn.Linear(width, outputs)
        self.know_head = nn.Linear(width, outputs + 4)
        self.probed: torch.Tensor | None = None
        self.model.model.language_model.layers[PROBED_LAYER].register_forward_hook(self._probe)

    def _probe(self, module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        self.probed = output

    def see(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Image features and the loss of naming what they show."""
        features = self.model.model.visual(batch["patches"], grid_thw=batch["grid"]).pooler_output
        return features, naming_loss(self.see_head(features), batch)

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Answer loss (nats per token, each answer counting alike) and the sum of the auxiliary losses."""
        features, seeing = self.see(batch)
        ids = batch["ids"]
        embedded = self.model.get_input_embeddings()(ids)
        image = ids == self.model.config.image_token_id
        embedded = embedded.masked_scatter(image.unsqueeze(-1), features.to(embedded.dtype))
        hidden = self.model.model.language_model(
            inputs_embeds=embedded, position_ids=batch["positions"], use_cache=False
        ).last_hidden_state
        weights = batch["learn"][:, 1:]
        wanted = weights > 0
        logits = self.model.lm_head(hidden[:, :-1][wanted]).float()
        losses = nn.functional.cross_entropy(logits, ids[:, 1:][wanted], reduction="none")
        answering = (losses * weights[wanted]).sum() / weights.sum()
        known = self.know_head(self.probed[image])
        knowing = naming_loss(known[:, :-4], batch)
        places = torch.tensor(quadrants_of_tokens()).repeat(len(batch["grid"]))
        placing = nn.functional.cross_entropy(known[:, -4:].float(), places)
        named = {"kinds": batch["named_kinds"][ids].flatten(), "colors": batch["named_colors"][ids].flatten()}
        naming = naming_loss(self.know_head(self.probed)[..., :-4].flatten(0, 1), named)
        return answering, seeing + knowing + placing + naming


def naming_loss(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    kinds = 1 + len(scenes.KINDS)
    kind_loss = nn.functional.cross_entropy(logits[:, :kinds].float(), batch["kinds"])
    return kind_loss + nn.functional.cross_entropy(logits[:, kinds:].float(), batch["colors"])


def learning_rate(progress: float, step: int, peak: float) -> float:
    warm = min(1.0, (step + 1) / 100)
    return peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def warm_up_vision(trainee: Trainee, data: Conversations, steps: int) -> None:
    """Teach the vision tower alone to name what each image token shows."""
    parameters = [*trainee.model.model.visual.parameters(), *trainee.see_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.02)
    started = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step / steps * 0.6, step, 1.5e-3)
        batch = data.batch(10_000_000 + step, 48)
        with torch.autocast("cpu", torch.bfloat16):
            _, loss = trainee.see(batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 25 == 0:
            print(f"vision {step} loss {loss.item():.3f} {time.monotonic() - started:.0f} s", flush=True)


def train(trainee: Trainee, data: Conversations, work: Path, steps: int, lookup_steps: int, batch_size: int) -> None:
    decayed = [p for p in trainee.parameters() if p.ndim > 1]
    plain = [p for p in trainee.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98))
    state, step = work / "state.pt", 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        trainee.load_state_dict(saved["trainee"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
    running, started = None, time.monotonic()
    while step < steps + lookup_steps:
        lookup = step >= steps
        progress = (step - steps) / lookup_steps if lookup else 0.9 * step / steps
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress, step, 7e-4 if lookup else 1e-3)
        trainee.model.model.visual.requires_grad_(not lookup)
        with torch.autocast("cpu", torch.bfloat16):
            answering, helping = trainee(data.batch(step, batch_size // 2 if lookup else batch_size, lookup=lookup))
        (answering + 0.2 * helping).backward()
        nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        running = answering.item() if running is None else 0.95 * running + 0.05 * answering.item()
        if step % 20 == 0:
            print(
                f"step {step} loss {running:.4f} helpers {helping.item():.3f} {time.monotonic() - started:.0f} s",
                flush=True,
            )
        if step % 200 == 0:
            keep_state(trainee, optimizer, step, state)
    keep_state(trainee, optimizer, step, state)


def keep_state(trainee: Trainee, optimizer: torch.optim.Optimizer, step: int, path: Path) -> None:
    partial = path.with_suffix(".partial")
    saved = {"trainee": trainee.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    torch.save(saved, partial)
    partial.replace(path)


def write_checkpoint(trainee: Trainee, tokenizer: Tokenizer, config: dict[str, object], out: Path) -> None:
    """Write the model as the hub serves Qwen2.5-VL: flat config, old tensor names, bf16."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {hub_name(name): value.to(torch.bfloat16) for name, value in trainee.model.state_dict().items()}
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, out / "model.safetensors", {"format": "pt"}
    )
    tokenizer.save(str(out / "tokenizer.json"))
    tokenizer.model.save(str(out))
    for name, content in side_files(tokenizer, config).items():
        (out / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def hub_name(name: str) -> str:
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def side_files(tokenizer: Tokenizer, config: dict[str, object]) -> dict[str, object]:
    end, stop = config["bos_token_id"], config["eos_token_id"]
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token in SPECIAL_TOKENS
    }
    return {
        "config.json": config,
        "generation_config.json": {"bos_token_id": end, "eos_token_id": [stop, end], "pad_token_id": end},
        "preprocessor_config.json": {
            "min_pixels": 3136,
            "max_pixels": 401408,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": MEAN.astype(float).round(8).tolist(),
            "image_std": STD.astype(float).round(8).tolist(),
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
        },
        "chat_template.json": {"chat_template": CHAT_TEMPLATE},
        "tokenizer_config.json": {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": added,
            "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
            "bos_token": None,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": 2048,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the state of the training")
    parser.add_argument("--out", type=Path, default=Path("luq_gguf/demo/Shapes-VL-11M"))
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--lookup-steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--vision-steps", type=int, default=600)
    parser.add_argument("--export-only", action="store_true", help="write the last state, do not train")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    tokenizer = train_tokenizer()
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    config = hub_config(ids)
    trainee = Trainee(Qwen2_5_VLConfig(**config))
    data = Conversations(tokenizer)
    state = options.work / "state.pt"
    if options.export_only:
        trainee.load_state_dict(torch.load(state, weights_only=True)["trainee"])
    else:
        if not state.exists():
            warm_up_vision(trainee, data, options.vision_steps)
        train(trainee, data, options.work, options.steps, options.lookup_steps, options.batch_size)
    write_checkpoint(trainee, tokenizer, config, options.out)


if __name__ == "__main__":
    main()
