"""How alike llama.cpp's image features are to transformers' for each layout of LLaVA-1.5's mmproj.

    python -m benchmarks.llava_layouts --json benchmarks/llava_layouts.json

The tower has the real shape (ViT-L/14-336) and random weights of CLIP-like statistics: norms' gains from 0.2 to 3,
channels with values of 30 to 60, and a class token that takes up to a third of the attention in every second layer.
The text model is small; it only has to be there. Four pictures: noise, blurred blocks, drawn shapes, white.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import AutoModelForImageTextToText, CLIPVisionConfig, CLIPVisionModel

from luq_gguf.families.llava_layouts import LAYOUTS
from luq_gguf.manifest import versions
from tests.families_under_test import Original, cosine, export, features_in_llama_cpp
from tests.pico_files import draw_weights, write_checkpoint
from tests.pico_llava import build_llava

SIDE, HIDDEN, HEADS, LAYERS, TEXT = 336, 1024, 16, 24, 256
PREFIX = "vision_tower.vision_model."


class Tower:
    """A CLIP tower in transformers, with weights of CLIP-like statistics."""

    def __init__(self, seed: int) -> None:
        config = CLIPVisionConfig(
            hidden_size=HIDDEN, num_attention_heads=HEADS, num_hidden_layers=LAYERS, image_size=SIDE, patch_size=14,
            intermediate_size=4 * HIDDEN,
        )  # fmt: skip
        self.model = CLIPVisionModel(config).float().eval()
        self.generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            outliers = torch.randperm(HIDDEN, generator=self.generator)[:2]
            self._embeddings(outliers)
            self._norms(outliers)
            for layer in self.model.encoder.layers:
                self._layer(layer, outliers)
            self._attend_to_the_class()

    def _normal(self, tensor: torch.Tensor, deviation: float, mean: float = 0.0) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=self.generator) * deviation + mean)

    def _embeddings(self, outliers: torch.Tensor) -> None:
        embeddings = self.model.embeddings
        self._normal(embeddings.class_embedding, 0.05)
        embeddings.class_embedding[outliers[0]] += 2
        self._normal(embeddings.patch_embedding.weight, 0.015)
        embeddings.patch_embedding.weight += 0.003 * torch.randn((HIDDEN, 3, 1, 1), generator=self.generator) + 0.001
        self._normal(embeddings.position_embedding.weight, 0.05, 0.01)

    def _norms(self, outliers: torch.Tensor) -> None:
        for module in self.model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.copy_(0.2 + 2.8 * torch.rand(HIDDEN, generator=self.generator) ** 2)
                self._normal(module.bias, 0.3)
        self.model.pre_layrnorm.weight.mul_(0.4)
        self.model.pre_layrnorm.weight[:3] = torch.tensor([1e-4, -0.05, 0.0])
        self.model.pre_layrnorm.bias[outliers] += torch.tensor([40.0, -30.0])

    def _layer(self, layer: Any, outliers: torch.Tensor) -> None:
        for part, deviation in (("q_proj", 1.5), ("k_proj", 1.5), ("v_proj", 0.8), ("out_proj", 0.8)):
            self._normal(getattr(layer.self_attn, part).weight, deviation / HIDDEN**0.5)
            self._normal(getattr(layer.self_attn, part).bias, 0.1)
        self._normal(layer.mlp.fc1.weight, 1 / HIDDEN**0.5)
        self._normal(layer.mlp.fc1.bias, 0.3, -0.5)
        self._normal(layer.mlp.fc2.weight, 0.5 / HIDDEN**0.5)
        self._normal(layer.mlp.fc2.bias, 0.05, 0.02)
        layer.mlp.fc2.weight[outliers[0]] *= 4
        for norm in (layer.layer_norm1, layer.layer_norm2):
            norm.weight[outliers] *= 0.05

    def _attend_to_the_class(self) -> None:
        """Every second layer's keys tell the class token from the patches, and its queries look for that."""
        pixels = torch.from_numpy(np.stack([normal_colors(image) for image in pictures()[:3]]))
        size = HIDDEN // HEADS
        for index in range(1, LAYERS, 2):
            layer = self.model.encoder.layers[index]
            normed = layer.layer_norm1(self.model(pixels, output_hidden_states=True).hidden_states[index])
            apart = (normed[:, 0] - normed[:, 1:].mean(1)).mean(0)
            reach = size**0.5 / 4 * (np.log(normed.shape[1]) + 0.5)
            for start in range(0, HIDDEN, size):
                direction = torch.nn.functional.normalize(torch.randn(size, generator=self.generator), dim=0)
                layer.self_attn.q_proj.bias[start : start + size] += 4 * direction
                turned = torch.outer(direction, apart) / apart.square().sum()
                layer.self_attn.k_proj.weight[start : start + size] += reach * turned

    def attention_to_the_class(self) -> list[float]:
        """Its share by layer, over the patches of the drawn picture."""
        self.model.set_attn_implementation("eager")
        with torch.no_grad():
            found = self.model(torch.from_numpy(normal_colors(pictures()[2]))[None], output_attentions=True).attentions
        return [round(float(weights[0, :, 1:, 0].mean()), 3) for weights in found]

    def weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """All tensors under the hub's names."""
        for name, value in self.model.state_dict().items():
            if "position_ids" not in name:
                yield f"{PREFIX}{name.removeprefix('vision_model.')}", value.numpy()


def pictures() -> list[Image.Image]:
    random = np.random.default_rng(5)
    noise = Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
    blocks = Image.fromarray(random.integers(0, 256, (7, 7, 3), np.uint8)).resize((SIDE, SIDE))
    drawing = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(drawing)
    for color in ("red", "blue", "green", "black", "orange"):
        x, y = (int(place) for place in random.integers(0, SIDE * 3 // 4, 2))
        pen.ellipse((x, y, x + SIDE // 4, y + SIDE // 5), fill=color)
        pen.rectangle((y, x, y + SIDE // 8, x + SIDE // 8), outline=color, width=3)
    return [noise, blocks, drawing, Image.new("RGB", (SIDE, SIDE), "white")]


def normal_colors(image: Image.Image) -> np.ndarray:
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    colors = (np.asarray(image, np.float32) / 255 - np.float32(mean)) / np.float32(std)
    return np.ascontiguousarray(colors.transpose(2, 0, 1))


def build(folder: Path, tower: Tower) -> Original:
    """A checkpoint with that tower, in float16 as the hub has it."""
    build_llava(folder, image_size=SIDE)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] |= {
        "hidden_size": HIDDEN, "intermediate_size": 4 * HIDDEN, "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
    }  # fmt: skip
    config["torch_dtype"] = "float16"
    (folder / "config.json").write_text(json.dumps(config))
    small = AutoModelForImageTextToText.from_pretrained(build_llava(folder / "small", image_size=56)).state_dict()
    weights = {
        f"language_model.{name.replace('model.language_model.', 'model.')}": value.float().numpy()
        for name, value in small.items()
        if "language_model" in name or name.startswith("lm_head")
    }
    shapes = {
        f"multi_modal_projector.{part}.{kind}": shape if kind == "weight" else shape[:1]
        for part, shape in (("linear_1", (TEXT, HIDDEN)), ("linear_2", (TEXT, TEXT)))
        for kind in ("weight", "bias")
    }
    weights |= dict(draw_weights(shapes, 0)) | dict(tower.weights())
    write_checkpoint(folder, weights.items(), {}, "f16", 1)
    return Original("llava-1.5", folder)


def measure(original: Original, work: Path, repeat: int) -> dict[str, Any]:
    expected = [original.features(image) for image in pictures()]
    found: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
    exported = {layout: export(original, work, "f16", layout) for layout in LAYOUTS}
    for layout, files in exported.items():
        assert files.mmproj is not None
        with files.running() as runtime:
            features = [features_in_llama_cpp(runtime, image) for image in pictures()]
        rows = [cosine(*pair) for pair in zip(features, expected, strict=True)]
        found[layout] = {
            "least": round(min(float(row.min()) for row in rows), 7),
            "mean": round(float(np.mean([row.mean() for row in rows])), 7),
            "bytes": files.mmproj.stat().st_size,
        }
    for _ in range(repeat):
        for layout, files in exported.items():
            with files.running() as runtime:
                features_in_llama_cpp(runtime, pictures()[0])
                started = time.perf_counter()
                features_in_llama_cpp(runtime, pictures()[1])
                seconds[layout].append(time.perf_counter() - started)
    for layout, times in seconds.items():
        found[layout]["seconds"] = round(statistics.median(times), 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tower = Tower(3)
    with tempfile.TemporaryDirectory() as work:
        original = build(Path(work) / "llava", tower)
        result = {
            "attention_to_the_class": tower.attention_to_the_class(),
            "layouts": measure(original, Path(work), options.repeat),
            "versions": versions(),
            "machine": platform.processor() or platform.machine(),
        }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
