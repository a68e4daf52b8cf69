"""Teach a text model that stays as it is to see: a vision tower for SmolLM2, on drawn scenes.

    python -m scripts.train_tower --text SMOLLM2 --work tower-training

SMOLLM2 is the folder that `benchmarks.make_smollm2` writes. First the tower learns to say, at each token of an image,
the text model's own embedding of a word that describes what is there, for which that model need not run; then to
make the frozen model answer questions about the scene. A run that was interrupted goes on from its state in `--work`,
where `tower.safetensors` lies at the end. `benchmarks.make_seeing_smollm2` joins the two.
"""

from __future__ import annotations

import argparse
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

from benchmarks.make_seeing_smollm2 import SYSTEM, config_of
from luq_gguf.demo import scenes
from scripts.make_demo_checkpoint import GRID, IMAGE_TOKENS, learning_rate, patches_of

TOWER = "tower.safetensors"
HELD_OUT_SEEDS = 1_000_000_000
WORD_BATCH, TURNS = 32, 3
SAVED_STEPS = 25
"""The state is kept after so many."""
SHARPNESS = 8.0


class Talk:
    """Scenes as words to be seen and as conversations."""

    def __init__(self, tokenizer: Tokenizer, config: dict[str, Any]) -> None:
        self.encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
        self.image, self.end = config["image_token_id"], config["vision_end_token_id"]
        named = (*scenes.COLORS, *scenes.KINDS, "nothing")
        self.words = torch.tensor(sorted({self.word(name) for name in named}))
        self.before = self.encode(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n")
        self.before.append(config["vision_start_token_id"])

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
            asked = self.encode("<|im_start|>user\n") if turn else [*[self.image] * IMAGE_TOKENS, self.end]
            asked += self.encode(f"{question.text}<|im_end|>\n<|im_start|>assistant\n")
            answer, tail = self.encode(f"{question.answer}<|im_end|>"), self.encode("\n")
            ids += asked + answer + tail
            learn += [0.0] * len(asked) + [1 / len(answer)] * len(answer) + [0.0] * len(tail)
        return ids, learn


def positions_of(ids: list[int], image: int) -> np.ndarray:
    """M-RoPE positions (3, len(ids)) of a conversation with one image, whose tokens are `image`."""
    start, side = ids.index(image), GRID // 2
    grid = np.indices((1, side, side)).reshape(3, -1) + start
    after = np.arange(len(ids) - start - IMAGE_TOKENS) + start + side
    return np.concatenate([np.tile(np.arange(start), (3, 1)), grid, np.tile(after, (3, 1))], axis=1)


class Student:
    """The frozen text model with the tower that learns."""

    def __init__(self, text: Path, compute: torch.dtype = torch.bfloat16) -> None:
        config = config_of(text)
        self.model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config))
        weights = load_file(text / "model.safetensors")
        state = {name.replace("model.", "model.language_model.", 1): value.float() for name, value in weights.items()}
        missing, unexpected = self.model.load_state_dict(state, strict=False)
        assert not unexpected
        assert all("visual" in name or "lm_head" in name for name in missing)
        self.model.tie_weights()
        self.model.requires_grad_(False)
        self.model.model.language_model.to(compute)
        self.tower = self.model.model.visual.requires_grad_(True)
        self.talk = Talk(Tokenizer.from_file(str(text / "tokenizer.json")), config)
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
            positions[:, number, : len(tokens)] = torch.from_numpy(positions_of(tokens, self.talk.image))
        ids, learn, positions = ids[:, start:], learn[:, start:], positions[:, :, start:]
        embedded = self.model.get_input_embeddings()(ids)
        embedded = embedded.masked_scatter((ids == self.talk.image).unsqueeze(-1), features.to(embedded.dtype))
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
        if step % SAVED_STEPS == 0:
            what = "words" if words else "answers"
            print(
                f"{what} {step} loss {loss.item():.3f} right {right:.3f} {time.monotonic() - started:.0f} s", flush=True
            )
            partial = state.with_suffix(".partial")
            torch.save(
                {"tower": student.tower.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, partial
            )
            partial.replace(state)
    tower = {name: value.half().contiguous() for name, value in student.tower.state_dict().items()}
    save_file(tower, options.work / TOWER, {"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--word-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=6)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
