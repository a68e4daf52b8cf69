"""Every family's export is llama.cpp's own converter's, bit for bit, from both forms of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gguf import GGUFReader

from luq_gguf.checkpoint import Checkpoint
from luq_gguf.families import KNOWN, find_family
from tests.families_under_test import READING, SEEING
from tests.picos import FAMILIES, FAMILY_GOLDEN_CASES, build_family, build_family_golden_case
from tests.test_export import ROOT, export, make_golden

GOLDEN = {case: json.loads((ROOT / "tests" / "golden" / f"{case}.json").read_text()) for case in FAMILY_GOLDEN_CASES}
OUTPUTS = [(case, output) for case, files in GOLDEN.items() for output in files]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {case: build_family_golden_case(tmp_path_factory.mktemp(case), case) for case in FAMILY_GOLDEN_CASES}


def test_every_family_that_is_known_has_a_pico_and_a_golden_file() -> None:
    assert {*SEEING, *READING} == set(FAMILIES)
    assert len(FAMILIES) == len(KNOWN)
    assert {case["family"] for case in FAMILY_GOLDEN_CASES.values()} | {"qwen2.5-vl"} == set(FAMILIES)


def test_an_mmproj_is_golden_wherever_the_converter_makes_one() -> None:
    for case, files in GOLDEN.items():
        sees = FAMILY_GOLDEN_CASES[case]["family"] in SEEING
        assert ("mmproj-f16" in files) == (sees and case != "llava-1.5")
        assert "text-f16" in files


@pytest.mark.parametrize(("case", "output"), OUTPUTS)
def test_export_is_that_of_the_converter(checkpoints: dict[str, Path], tmp_path: Path, case: str, output: str) -> None:
    made = make_golden.summarize(export(checkpoints[case], tmp_path / "made.gguf", output))
    assert made["metadata"] == GOLDEN[case][output]["metadata"]
    assert made["tensors"] == GOLDEN[case][output]["tensors"]


@pytest.mark.parametrize("family", ["qwen2-vl", "qwen3-vl", "llava-1.5", "gemma-3", *READING])
def test_what_transformers_saves_gives_the_same_tensors(tmp_path: Path, family: str) -> None:
    """Another form of config.json, other names of the tensors; the side files are the hub's."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    hub, resaved = build_family(tmp_path / "hub", family, seed=3), tmp_path / "resaved"
    kind = AutoModelForImageTextToText if family in SEEING else AutoModelForCausalLM
    kind.from_pretrained(hub, dtype="auto").save_pretrained(resaved, max_shard_size="1MB")
    for path in hub.iterdir():
        if path.suffix != ".safetensors" and path.name != "config.json":
            (resaved / path.name).write_bytes(path.read_bytes())
    for output in ["text-bf16", "mmproj-f16"] if family in SEEING else ["text-bf16"]:
        first, second = (GGUFReader(export(folder, tmp_path / f"{output}.gguf", output)) for folder in (hub, resaved))
        assert {t.name: t.data.tobytes() for t in first.tensors} == {t.name: t.data.tobytes() for t in second.tensors}
        for name, field in first.fields.items():
            if not name.startswith(("general.", "GGUF.")):
                assert second.fields[name].contents() == field.contents(), name
        assert {n for n in first.fields if "general." not in n} == {n for n in second.fields if "general." not in n}


@pytest.mark.parametrize("family", ["llava-1.5", "gemma-3"])
def test_a_vocabulary_without_tokenizer_model_comes_from_tokenizer_json(tmp_path: Path, family: str) -> None:
    folder = build_family(tmp_path / "pico", family)
    with_model = GGUFReader(export(folder, tmp_path / "with.gguf", "text-bf16"))
    (folder / "tokenizer.model").unlink()
    without = GGUFReader(export(folder, tmp_path / "without.gguf", "text-bf16"))
    for key in ("tokens", "token_type"):
        name = f"tokenizer.ggml.{key}"
        assert without.fields[name].contents() == with_model.fields[name].contents()
    scores = [file.fields["tokenizer.ggml.scores"].contents() for file in (with_model, without)]
    kinds = with_model.fields["tokenizer.ggml.token_type"].contents()
    normal = [rank for rank, kind in enumerate(kinds) if kind == 1 and scores[0][rank] < 0]
    by_score = [sorted(normal, key=lambda rank, s=s: -s[rank]) for s in scores]
    merged = {pair[0] + pair[1] for pair in json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]}
    tokens = with_model.fields["tokenizer.ggml.tokens"].contents()
    first, second = ([rank for rank in order if tokens[rank] in merged] for order in by_score)
    assert first == second
    assert len(first) > 50


def test_the_layout_of_a_checkpoint_is_checked_before_anything_is_computed(tmp_path: Path) -> None:
    folder = build_family(tmp_path / "pico", "llava-1.5")
    checkpoint = Checkpoint.open(folder)
    family = find_family(checkpoint.config, checkpoint)
    stored = {family.find(checkpoint, tensor.source) for tensor in family.checkpoint_tensors()}
    unused = {"vision_tower.vision_model.post_layernorm.weight", "vision_tower.vision_model.post_layernorm.bias"}
    assert stored == checkpoint.tensors.keys() - unused
