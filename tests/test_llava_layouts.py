"""The layouts of LLaVA's mmproj in both graphs: llama.cpp's own, and the one in which the class token comes first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from hypothesis import given
from hypothesis import strategies as st

from luq_gguf.families.llava_layouts import LAYOUTS, Codes
from luq_gguf.images import normalize
from tests.families_under_test import Original, cosine, export, features_in_llama_cpp, picture
from tests.picos import build_family

Tensors = dict[str, torch.Tensor]


class Graph:
    """llama.cpp's graph for CLIP towers with a projector of kind "mlp", in float32."""

    def __init__(self, path: Path) -> None:
        read = GGUFReader(path)
        self.tensors: Tensors = {
            t.name: torch.from_numpy(t.data.astype(np.float32).reshape(*reversed(t.shape.tolist())))
            for t in read.tensors
        }
        self.layers, self.heads, self.epsilon = (
            read.fields[f"clip.vision.{key}"].contents()
            for key in ("block_count", "attention.head_count", "attention.layer_norm_epsilon")
        )

    def features(self, colors: np.ndarray, *, class_first: bool) -> np.ndarray:
        kernel = self.tensors["v.patch_embd.weight"]
        patches = torch.nn.functional.conv2d(torch.from_numpy(colors)[None], kernel, stride=kernel.shape[-1])
        tokens = patches[0].flatten(1).T
        count = len(tokens)
        token = self.tensors.get("v.class_embd")
        if token is not None:
            tokens = torch.cat([token[None], tokens] if class_first else [tokens, token[None]])
        states = self._norm(tokens + self.tensors["v.position_embd.weight"], "v.pre_ln")
        for layer in range(self.layers - 1):
            states = self._layer(states, f"v.blk.{layer}.")
        rows = states if token is None else states[1 : count + 1]
        inner = torch.nn.functional.gelu(self._linear(rows, "mm.0"), approximate="tanh")
        return self._linear(inner, "mm.2").numpy()

    def _norm(self, states: torch.Tensor, name: str) -> torch.Tensor:
        """In float64, as llama.cpp's CPU sums."""
        wide = states.double()
        apart = wide - wide.mean(-1, keepdim=True)
        normal = apart / (apart.square().mean(-1, keepdim=True) + self.epsilon).sqrt()
        return normal.float() * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]

    def _linear(self, states: torch.Tensor, name: str) -> torch.Tensor:
        return states @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def _layer(self, states: torch.Tensor, prefix: str) -> torch.Tensor:
        normed = self._norm(states, f"{prefix}ln1")
        q, k, v = (
            self._linear(normed, f"{prefix}attn_{part}").unflatten(-1, (self.heads, -1)).transpose(0, 1)
            for part in "qkv"
        )
        seen = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
        states = states + self._linear(seen, f"{prefix}attn_out")
        inner = self._linear(self._norm(states, f"{prefix}ln2"), f"{prefix}ffn_up")
        return states + self._linear(inner * torch.sigmoid(1.702 * inner), f"{prefix}ffn_down")


@pytest.fixture(scope="module", params=[56, 112, 140])
def llava(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Original:
    folder = tmp_path_factory.mktemp(f"llava-{request.param}") / "pico"
    return Original("llava-1.5", build_family(folder, "llava-1.5", image_size=request.param, dtype="f32"))


@pytest.fixture(scope="module")
def graphs(llava: Original, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Graph, Any]]:
    made = {}
    for layout in LAYOUTS:
        files = export(llava, tmp_path_factory.mktemp(layout), "f32", layout)
        made[layout] = (Graph(files.mmproj), files)
    return made


def both(graph: Graph, llava: Original, seed: int, *, class_first: bool) -> np.ndarray:
    """How alike the graph's features are to transformers', row by row."""
    image = picture(*llava.sizes()[0], seed)
    found = graph.features(normalize(image, llava.family.image_grid), class_first=class_first)
    return cosine(found, llava.features(image))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_graph_is_llama_cpps(llava: Original, graphs: dict[str, tuple[Graph, Any]], layout: str) -> None:
    graph, files = graphs[layout]
    image = picture(*llava.sizes()[0])
    with files.running() as runtime:
        found = features_in_llama_cpp(runtime, image)
    assert cosine(found, graph.features(normalize(image, llava.family.image_grid), class_first=False)).min() > 0.9999


def test_the_exact_layout_is_exact_in_both_graphs(llava: Original, graphs: dict[str, tuple[Graph, Any]]) -> None:
    for seed in (0, 1, 2):
        for class_first in (False, True):
            assert both(graphs["exact"][0], llava, seed, class_first=class_first).min() > 0.9999, (seed, class_first)


def test_the_standard_layout_is_exact_where_the_class_token_comes_first(
    llava: Original, graphs: dict[str, tuple[Graph, Any]]
) -> None:
    assert both(graphs["standard"][0], llava, 0, class_first=True).min() > 0.99999
    assert both(graphs["standard"][0], llava, 0, class_first=False).min() < 0.99


def test_a_layout_without_the_class_token_is_the_same_in_both_graphs(
    llava: Original, graphs: dict[str, tuple[Graph, Any]]
) -> None:
    graph, _ = graphs["no-class"]
    assert (both(graph, llava, 0, class_first=True) == both(graph, llava, 0, class_first=False)).all()


def test_the_checkpoints_own_weights_stay_as_they_are(graphs: dict[str, tuple[Graph, Any]]) -> None:
    """A float16 checkpoint's matrices go through bit for bit: nothing is rounded that was not."""
    exact, standard = graphs["exact"][0], graphs["standard"][0]
    for layer in range(standard.layers - 1):
        for part in ("attn_q", "attn_k", "attn_v", "attn_out", "ffn_up", "ffn_down"):
            ours = standard.tensors[f"v.blk.{layer}.{part}.weight"]
            wide = exact.tensors[f"v.blk.{layer + 2}.{part}.weight"]
            assert (wide[: ours.shape[0], : ours.shape[1]] == ours).all()


@given(tokens=st.integers(2, 4000), class_first=st.booleans(), data=st.data())
def test_a_token_scores_above_nothing_but_the_one_it_is_to_look_at(tokens: int, class_first: bool, data) -> None:
    codes = Codes(tokens)
    rows = codes.rows(class_first=class_first).astype(np.int64)
    token = data.draw(st.integers(0, tokens - 1))
    scores = rows[:, codes.own] @ rows[token, codes.before] - (codes.bits - 1)
    wanted = token if class_first else (token - 1) % tokens
    assert scores[wanted] == 1
    assert np.delete(scores, wanted).max() <= -1
    assert codes.channels == rows.shape[1]
