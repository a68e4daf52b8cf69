"""Exports are llama.cpp's own, bit for bit: golden files, torch's rounding, and llama.cpp itself as oracles."""

from __future__ import annotations

import importlib.util
import json
import shutil
import tracemalloc
from pathlib import Path
from types import ModuleType

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from luq_gguf.checkpoint import Checkpoint
from luq_gguf.errors import CheckpointError, DiskSpaceError, RequestError, TensorError
from luq_gguf.export import (
    convert,
    export_text,
    export_vision,
    resolve_dtype,
    text_layout,
    write_header_only,
)
from luq_gguf.families import Family, find_family
from tests.pico import GOLDEN_CASES, build_golden_case, build_pico, pico_weights
from tests.pico_files import encode, write_shards
from tests.picos import FAMILY_GOLDEN_CASES

ROOT = Path(__file__).resolve().parent.parent
GOLDEN_FILES = [*GOLDEN_CASES, "demo"]
OUTPUTS = [f"{kind}-{dtype}" for kind in ("text", "mmproj") for dtype in ("f16", "bf16", "f32")]


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_golden = load_script("make_golden")


def open_model(folder: Path) -> tuple[Checkpoint, Family]:
    checkpoint = Checkpoint.open(folder)
    return checkpoint, find_family(checkpoint.config, checkpoint)


def export(folder: Path, target: Path, output: str) -> Path:
    checkpoint, family = open_model(folder)
    kind, _, dtype = output.partition("-")
    write = export_text if kind == "text" else export_vision
    write(checkpoint, family, target, dtype=dtype)
    return target


def tensor_bytes(path: Path) -> dict[str, bytes]:
    return {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(path).tensors}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    built = {name: build_golden_case(tmp_path_factory.mktemp(name), name) for name in GOLDEN_CASES}
    return built | {"demo": make_golden.DEMO}


def test_every_pico_case_has_its_golden_file() -> None:
    made = {path.stem for path in (ROOT / "tests" / "golden").glob("*.json")}
    assert made == {*GOLDEN_CASES, *FAMILY_GOLDEN_CASES, "demo"}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("case", GOLDEN_FILES)
def test_export_is_that_of_the_converter(checkpoints: dict[str, Path], tmp_path: Path, case: str, output: str) -> None:
    golden = json.loads((ROOT / "tests" / "golden" / f"{case}.json").read_text())[output]
    made = make_golden.summarize(export(checkpoints[case], tmp_path / "made.gguf", output))
    assert made["metadata"] == golden["metadata"]
    assert made["tensors"] == golden["tensors"]


@pytest.mark.parametrize("name", ["pico", "tied"])
def test_both_forms_of_a_checkpoint_give_the_same_bytes(tmp_path: Path, name: str) -> None:
    """The second form is written by transformers itself; tokenizer and image files stay beside it."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    hub = build_pico(tmp_path / "hub" / name, tied=name == "tied", layers=2)
    resaved = tmp_path / "resaved" / name
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(hub, dtype=torch.bfloat16)
    model.save_pretrained(resaved, max_shard_size="1MB")
    assert "text_config" in json.loads((resaved / "config.json").read_text())
    assert len(list(resaved.glob("*.safetensors"))) > 1
    for path in hub.iterdir():
        if path.suffix != ".safetensors" and path.name != "config.json":
            shutil.copy(path, resaved)
    for output in ("text-bf16", "mmproj-f16"):
        first = export(hub, tmp_path / "first.gguf", output)
        second = export(resaved, tmp_path / "second.gguf", output)
        assert first.read_bytes() == second.read_bytes()


def test_tensors_under_the_names_of_the_modules_are_found(tmp_path: Path) -> None:
    folder = build_pico(tmp_path / "a" / "pico")
    renamed = build_pico(tmp_path / "b" / "pico")
    weights = {}
    for name, value in pico_weights(seed=0, layers=3):
        inner = name.removeprefix("model.")
        new = f"model.{name}" if name.startswith("visual.") else f"model.language_model.{inner}"
        weights[name if name == "lm_head.weight" else new] = encode(value, "bf16")
    write_shards(renamed, weights, "bf16", 1)
    for output in ("text-bf16", "mmproj-bf16"):
        first = export(folder, tmp_path / "first.gguf", output)
        assert first.read_bytes() == export(renamed, tmp_path / "second.gguf", output).read_bytes()


def test_a_part_has_the_tensors_and_the_metadata_of_the_whole(pico_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint, family = open_model(pico_checkpoint)
    whole, layer, bare = (tmp_path / f"{name}.gguf" for name in ("whole", "layer", "bare"))
    export_text(checkpoint, family, whole)
    export_text(checkpoint, family, layer, select=lambda name: name.startswith("blk.1."))
    export_text(checkpoint, family, bare, select=lambda name: name.startswith("blk.1."), tokenizer=False)
    expected = {name: data for name, data in tensor_bytes(whole).items() if name.startswith("blk.1.")}
    assert len(expected) == 12
    assert tensor_bytes(layer) == tensor_bytes(bare) == expected
    metadata = make_golden.summarize(whole)["metadata"]
    assert make_golden.summarize(layer)["metadata"] == metadata
    without = {key: value for key, value in metadata.items() if not key.startswith("tokenizer.")}
    assert make_golden.summarize(bare)["metadata"] == without
    assert len(without) < len(metadata)


def test_auto_follows_the_checkpoint(tmp_path: Path) -> None:
    for dtype, expected in (("bf16", "bf16"), ("f16", "f16"), ("f32", "f16")):
        checkpoint, _ = open_model(build_pico(tmp_path / dtype, dtype=dtype, layers=1))
        assert resolve_dtype(checkpoint, "auto") == expected
        assert resolve_dtype(checkpoint, "f32") == "f32"
        with pytest.raises(RequestError, match="'q4_0' is no type"):
            resolve_dtype(checkpoint, "q4_0")


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_header_only_file_is_the_whole_with_a_hole(pico_checkpoint: Path, tmp_path: Path, dtype: str) -> None:
    checkpoint, family = open_model(pico_checkpoint)
    whole, header = tmp_path / "whole.gguf", tmp_path / "header.gguf"
    export_text(checkpoint, family, whole, dtype=dtype)
    write_header_only(checkpoint, family, header, dtype=dtype)
    reader = GGUFReader(whole)
    start = min(tensor.data_offset for tensor in reader.tensors)
    full, hollow = whole.read_bytes(), header.read_bytes()
    assert len(full) == len(hollow)
    assert full[:start] == hollow[:start]
    assert not any(hollow[start:])
    assert header.stat().st_blocks * 512 < len(hollow) // 10
    layout = {
        tensor.name: (tuple(int(size) for size in reversed(tensor.shape)), tensor.tensor_type)
        for tensor in reader.tensors
    }
    assert text_layout(family, dtype) == layout
    assert list(text_layout(family, dtype)) == list(layout)


def test_header_of_a_model_of_which_only_the_config_is_there(pico_checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((pico_checkpoint / "config.json").read_text())
    bare = Checkpoint(tmp_path / pico_checkpoint.name, config, {}, "")
    write_header_only(bare, find_family(config), tmp_path / "bare.gguf", dtype="f16", tokenizer=False)
    export_text(*open_model(pico_checkpoint), tmp_path / "whole.gguf", dtype="f16", tokenizer=False)
    made, whole = (make_golden.summarize(tmp_path / f"{name}.gguf") for name in ("bare", "whole"))
    for summary in (made, whole):
        for tensor in summary["tensors"].values():
            tensor.pop()
        summary["metadata"] = {key: value for key, value in summary["metadata"].items() if "sampling" not in key}
    assert made == whole


def test_progress_ends_at_the_total(pico_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint, family = open_model(pico_checkpoint)
    calls: list[tuple[str, int, int]] = []
    export_text(checkpoint, family, tmp_path / "x.gguf", progress=lambda *call: calls.append(call))
    assert len({(what, total) for what, _, total in calls}) == 1
    assert [done for _, done, _ in calls] == sorted({done for _, done, _ in calls})
    assert calls[0][1] == 0
    assert calls[-1][1] == calls[-1][2] == sum(len(data) for data in tensor_bytes(tmp_path / "x.gguf").values())


def peak_of_export(folder: Path, target: Path, dtype: str) -> int:
    checkpoint, family = open_model(folder)
    tracemalloc.start()
    try:
        export_text(checkpoint, family, target, dtype=dtype, tokenizer=False)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_memory_is_bounded_by_a_tensor_and_not_by_the_model(tmp_path: Path, dtype: str) -> None:
    small = build_pico(tmp_path / "small", layers=2)
    large = build_pico(tmp_path / "large", layers=40)
    weights = {name: encode(value, "bf16") for name, value in pico_weights(seed=0, layers=2)}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = np.resize(weights[name], (60_000, 256))
    write_shards(small, weights, "bf16", 1)
    config = json.loads((small / "config.json").read_text()) | {"vocab_size": 60_000}
    (small / "config.json").write_text(json.dumps(config))
    largest = weights["lm_head.weight"].nbytes
    assert peak_of_export(small, tmp_path / "small.gguf", dtype) < largest
    assert peak_of_export(large, tmp_path / "large.gguf", dtype) < 10_000_000 < (tmp_path / "large.gguf").stat().st_size


def put_value(folder: Path, tensor: str, value: float, dtype: str) -> None:
    weights = dict(pico_weights(seed=0, layers=3))
    weights[tensor].flat[5] = value
    with np.errstate(over="ignore"):
        write_shards(folder, {name: encode(item, dtype) for name, item in weights.items()}, dtype, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
@pytest.mark.parametrize(
    ("output", "tensor"),
    [("text", "model.layers.1.mlp.up_proj.weight"), ("mmproj", "visual.patch_embed.proj.weight")],
)
def test_a_value_that_is_not_finite_stops_the_export(
    tmp_path: Path, output: str, tensor: str, dtype: str, value: float
) -> None:
    folder = build_pico(tmp_path / "model")
    put_value(folder, tensor, value, dtype)
    for wanted in ("f16", "bf16", "f32"):
        with pytest.raises(TensorError, match=f"tensor {tensor} holds 1 values that are NaN or infinite"):
            export(folder, tmp_path / "out" / "x.gguf", f"{output}-{wanted}")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_value_beyond_f16_asks_for_bf16(tmp_path: Path) -> None:
    folder = build_pico(tmp_path / "model")
    put_value(folder, "model.layers.1.mlp.up_proj.weight", 70_000.0, "bf16")
    with pytest.raises(TensorError, match=r"up_proj.weight holds 70144, too large for f16.*use bf16 or f32"):
        export(folder, tmp_path / "out" / "x.gguf", "text-f16")
    assert list((tmp_path / "out").iterdir()) == []
    export(folder, tmp_path / "out" / "x.gguf", "text-bf16")


def test_config_of_another_size_and_missing_tensors_are_named(tmp_path: Path) -> None:
    folder = build_pico(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 768}))
    with pytest.raises(
        TensorError, match=r"mlp.down_proj.weight has shape \(256, 512\), config.json says \(256, 768\)"
    ):
        export(folder, tmp_path / "x.gguf", "text-f16")
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(TensorError, match=r"tensor model\.layers\.3\.self_attn\.k_proj\.bias is missing"):
        export(folder, tmp_path / "x.gguf", "text-f16")
    assert not (tmp_path / "x.gguf").exists()


def test_a_full_disk_is_told_before_writing(
    pico_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(DiskSpaceError, match="bytes free"):
        export(pico_checkpoint, tmp_path / "out" / "x.gguf", "text-f16")
    assert not (tmp_path / "out").exists()


def write_json(name: str, **changes: object) -> tuple[str, dict[str, object]]:
    return name, changes


BROKEN_SIDE_FILES = {
    "temperature a text": (write_json("generation_config.json", temperature="hot"), "value that GGUF cannot hold"),
    "top_k huge": (write_json("generation_config.json", top_k=1 << 40), "value that GGUF cannot hold"),
    "vocabulary too large": (write_json("config.json", vocab_size=300), "goes up to token 495, vocab_size is 300"),
    "no pre-tokenizer": (write_json("tokenizer.json", pre_tokenizer=None), "does not split texts as this family does"),
    "no tokenizer model": (write_json("tokenizer.json", model=None), "is no BPE tokenizer"),
    "template a number": (write_json("tokenizer_config.json", chat_template=[1]), "chat_template|tokenizer files|GGUF"),
}


@pytest.mark.parametrize("case", BROKEN_SIDE_FILES)
def test_broken_side_files_are_named(tmp_path: Path, case: str) -> None:
    (name, changes), message = BROKEN_SIDE_FILES[case]
    folder = build_pico(tmp_path / "model")
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | changes))
    if "vocab_size" in changes:
        weights = dict(pico_weights(seed=0, layers=3))
        for table in ("model.embed_tokens.weight", "lm_head.weight"):
            weights[table] = weights[table][:300]
        write_shards(folder, {key: encode(value, "bf16") for key, value in weights.items()}, "bf16", 1)
    with pytest.raises(CheckpointError, match=message) as caught:
        export(folder, tmp_path / "out" / "x.gguf", "text-f16")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").glob("*"))


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = build_pico(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer.json"):
        export(folder, tmp_path / "x.gguf", "text-f16")


def test_broken_model_card_is_one_line(tmp_path: Path) -> None:
    folder = build_pico(tmp_path / "model")
    (folder / "README.md").write_text("---\nlicense: [a\ntags: }\n---\n")
    with pytest.raises(CheckpointError, match="model card") as caught:
        export(folder, tmp_path / "x.gguf", "text-f16")
    assert "\n" not in str(caught.value)


FLOATS = arrays.arrays(
    np.float32, st.integers(1, 64), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
)


@settings(deadline=None)
@given(values=FLOATS)
def test_rounding_is_that_of_torch(values: np.ndarray) -> None:
    tensor = torch.from_numpy(values.copy())
    for kind, dtype in ((GGMLQuantizationType.F16, torch.float16), (GGMLQuantizationType.BF16, torch.bfloat16)):
        expected = tensor.to(dtype)
        if bool(torch.isfinite(expected).all()):
            made = convert(values, kind, "x")
            np.testing.assert_array_equal(made.view(np.uint16), expected.view(torch.uint16).numpy())
        else:
            with pytest.raises(TensorError):
                convert(values, kind, "x")
    np.testing.assert_array_equal(convert(values, GGMLQuantizationType.F32, "x"), values)


def test_llama_cpp_computes_what_transformers_does(tmp_path: Path) -> None:
    """Logits of a text prompt from the exported file, against the checkpoint in transformers at float32."""
    from llama_cpp import Llama
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    folder = build_pico(tmp_path / "model", dtype="f32")
    path = export(folder, tmp_path / "x.gguf", "text-f32")
    llama = Llama(str(path), n_ctx=256, n_threads=1, logits_all=True, verbose=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = "<|im_start|>user\nWhat is in the picture? 42 stars, isn't it?\n\n <tool_call>é🦙<|im_end|>\n"
    ids = tokenizer(prompt).input_ids
    assert llama.tokenize(prompt.encode(), add_bos=True, special=True) == ids
    llama.eval(ids)
    made = np.array(llama.scores[: len(ids)])
    llama.close()
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    assert float(np.abs(expected).max()) > 1
    np.testing.assert_allclose(made, expected, atol=0.02)


def test_metadata_types_are_gguf_types(pico_checkpoint: Path) -> None:
    checkpoint, family = open_model(pico_checkpoint)
    entries = family.text_metadata(checkpoint, dtype="f16")
    assert entries[0][:2] == ("general.architecture", "qwen2vl")
    assert all(isinstance(kind, gguf.GGUFValueType) for _, _, kind, _ in entries)
    assert len({key for key, *_ in entries}) == len(entries)
