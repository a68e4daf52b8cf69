"""The program from outside: exit codes, one clear line on stderr, nothing left under a final name."""

from __future__ import annotations

import json
import math
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from luq_gguf.demo.scenes import draw_scene, make_scene
from tests.pico import build_pico
from tests.program import QUICK, Run
from tests.program import run_program as run


def assert_refused(done: Run, code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("luq-gguf: ")
    for word in words:
        assert word in message, message


def assert_nothing_made(out: Path) -> None:
    """No model, no plan, no half-written file under a final name."""
    left = [path.name for path in out.rglob("*") if path.is_file()] if out.exists() else []
    assert not [name for name in left if name.endswith((".gguf", "plan.json", "manifest.json")) and name[0] != "."]


@pytest.fixture
def model(pico_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the pico checkpoint that a test may break."""
    return Path(shutil.copytree(pico_checkpoint, tmp_path / "pico"))


def rewrite_tensor(folder: Path, name: str, value: bytes) -> None:
    """Overwrite the first bytes of a tensor in a single-file checkpoint."""
    path = folder / "model.safetensors"
    with path.open("r+b") as handle:
        length = struct.unpack("<Q", handle.read(8))[0]
        header = json.loads(handle.read(length))
        handle.seek(8 + length + header[name]["data_offsets"][0])
        handle.write(value)


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def unknown_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["MambaForCausalLM"], "model_type": "mamba"}
    (folder / "config.json").write_text(json.dumps(config))


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    with path.open("r+b") as handle:
        handle.truncate(path.stat().st_size - 1000)


def missing_shard(folder: Path) -> None:
    shutil.rmtree(folder)
    build_pico(folder, shards=2)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def climbing_index(folder: Path) -> None:
    weight_map = {"lm_head.weight": "../stolen.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def not_a_number(folder: Path) -> None:
    rewrite_tensor(folder, "model.layers.1.mlp.up_proj.weight", b"\xc0\x7f")


def infinite(folder: Path) -> None:
    rewrite_tensor(folder, "model.layers.2.self_attn.o_proj.weight", b"\x80\x7f")


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


BROKEN_MODELS = [
    (no_config, ("config.json",)),
    (unknown_architecture, ("MambaForCausalLM", "Qwen2_5_VLForConditionalGeneration")),
    (truncated, ("model.safetensors",)),
    (missing_shard, ("model-00002-of-00002.safetensors",)),
    (climbing_index, ("../stolen.safetensors",)),
    (not_a_number, ("layers.1.mlp.up_proj.weight", "NaN")),
    (infinite, ("layers.2.self_attn.o_proj.weight", "infinite")),
    (pickle_only, ("pytorch_model.bin", "safetensors")),
]


@pytest.mark.parametrize(("break_it", "words"), BROKEN_MODELS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_checkpoint_is_one_clear_line(model: Path, tmp_path: Path, break_it, words) -> None:
    break_it(model)
    done = run("convert", model, "--out", tmp_path / "out", *QUICK)
    assert_refused(done, 1, *words)
    assert_nothing_made(tmp_path / "out")


def write_rows(path: Path, *rows: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_an_unreadable_image_is_named(model: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n0000")
    rows = write_rows(tmp_path / "rows.jsonl", {"image": "cut.png", "question": "What?", "answer": "A cat."})
    done = run("convert", model, "--out", tmp_path / "out", "--calib", rows)
    assert_refused(done, 1, "cut.png")
    assert_nothing_made(tmp_path / "out")


def test_an_empty_calibration_set_is_refused(model: Path, tmp_path: Path) -> None:
    done = run("convert", model, "--out", tmp_path / "out", "--calib", write_rows(tmp_path / "rows.jsonl"))
    assert_refused(done, 1, "rows.jsonl")
    assert_nothing_made(tmp_path / "out")


def test_a_budget_below_the_smallest_file_names_the_smallest(model: Path, tmp_path: Path) -> None:
    done = run("convert", model, "--out", tmp_path / "out", "--max-size", "10KB", *QUICK)
    assert_refused(done, 2, "10,000 bytes", "smallest")
    smallest = done.stderr.split("the smallest has ")[1].split(" bytes")[0]
    assert_nothing_made(tmp_path / "out")
    made = run("convert", model, "--out", tmp_path / "out", "--max-size", smallest.replace(",", ""), *QUICK, "--json")
    assert made.returncode == 0, made.stderr
    result = json.loads(made.stdout)
    assert Path(result["model"]).stat().st_size == result["size_bytes"] == int(smallest.replace(",", ""))


def write_sparse_giant(folder: Path, wanted_bytes: int) -> None:
    """A checkpoint whose weights are holes: it claims far more than `wanted_bytes` when quantized."""
    hidden, ffn, kv = 8192, 262144, 1024
    while (layers := math.ceil(wanted_bytes / (3 * hidden * ffn * 0.5))) > 400:
        ffn *= 2
    build_pico(folder, layers=1)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers}
    config |= {"max_window_layers": layers, "num_attention_heads": 64, "num_key_value_heads": 8}
    config["rope_scaling"] = {"type": "mrope", "mrope_section": [16, 24, 24]}
    config["vision_config"]["out_hidden_size"] = hidden
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {
        "model.embed_tokens.weight": (512, hidden),
        "lm_head.weight": (512, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name, rows in (("q", hidden), ("k", kv), ("v", kv)):
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (rows, hidden)
            shapes[f"{prefix}self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{prefix}self_attn.o_proj.weight"] = (hidden, hidden)
        shapes[f"{prefix}mlp.gate_proj.weight"] = shapes[f"{prefix}mlp.up_proj.weight"] = (ffn, hidden)
        shapes[f"{prefix}mlp.down_proj.weight"] = (hidden, ffn)
        shapes[f"{prefix}input_layernorm.weight"] = shapes[f"{prefix}post_attention_layernorm.weight"] = (hidden,)
    append_holes(folder / "model.safetensors", shapes, hidden)


def append_holes(path: Path, shapes: dict[str, tuple[int, ...]], hidden: int) -> None:
    """Rewrite a safetensors file: `shapes` as holes, of the rest (the vision part) the merger widened."""
    with path.open("rb") as handle:
        old = json.loads(handle.read(struct.unpack("<Q", handle.read(8))[0]))
    vision = {name: tuple(info["shape"]) for name, info in old.items() if name.startswith("visual.")}
    vision["visual.merger.mlp.2.weight"] = (hidden, vision["visual.merger.mlp.2.weight"][1])
    vision["visual.merger.mlp.2.bias"] = (hidden,)
    header, offset = {}, 0
    for name, shape in (shapes | vision).items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with path.open("wb") as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        handle.truncate(8 + len(text) + offset)


def test_a_disk_without_room_is_noticed_before_any_work(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    write_sparse_giant(tmp_path / "giant", 2 * free)
    done = run("convert", tmp_path / "giant", "--out", tmp_path / "out")
    assert_refused(done, 1, "bytes free")
    needed = int(done.stderr.split(" needs ")[1].split(" bytes")[0].replace(",", ""))
    assert needed > free
    assert_nothing_made(tmp_path / "out")


REQUESTS = [
    (("--low-layers", "4"), 2, ("4 low layers", "3")),
    (("--low-type", "IQ9_Z"), 2, ("IQ9_Z", "IQ1_M")),
    (("--high-type", "Q4_K_XXL"), 2, ("Q4_K_XXL", "Q4_K_M")),
    (("--order", "astrology"), 2, ("astrology", "entropy")),
    (("--mmproj-type", "q4_0"), 2, ("q4_0", "bf16")),
]


@pytest.mark.parametrize(("arguments", "code", "words"), REQUESTS, ids=lambda value: str(value)[:24])
def test_a_malformed_request_is_exit_2(pico_checkpoint: Path, tmp_path: Path, arguments, code, words) -> None:
    done = run("convert", pico_checkpoint, "--out", tmp_path / "out", *arguments)
    assert_refused(done, code, *words)
    assert_nothing_made(tmp_path / "out")


MISTYPED = [
    (("convert", "model", "--out", "out", "--max-size", "much"), ("'much'", "3.4GiB")),
    (("convert", "model", "--out", "out", "--alpha", "1.5"), ("--alpha",)),
    (("convert", "model", "--out", "out", "--low-layers", "-1"), ("--low-layers",)),
    (("convert", "model", "--out", "out", "--no-such-option"), ("--no-such-option",)),
    (("convert", "model"), ("--out",)),
    (("analyze",), ("model",)),
    (("transmogrify",), ("transmogrify",)),
]


@pytest.mark.parametrize(("arguments", "words"), MISTYPED, ids=lambda value: " ".join(value[-2:]))
def test_a_line_that_cannot_be_parsed_is_exit_2(arguments, words) -> None:
    done = run(*arguments)
    assert_refused(done, 2, *words, "--help")
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_without_a_command_it_shows_the_help() -> None:
    done = run()
    assert done.returncode == 2
    assert "convert" in done.stdout
    assert "luq-gguf:" not in done.stderr


def test_a_max_size_above_the_largest_file_gives_that_and_says_so(
    converted: Run, pico_checkpoint: Path, tmp_path: Path
) -> None:
    result = json.loads(converted.stdout)
    shutil.copytree(Path(result["model"]).parent / ".work", tmp_path / "work")
    arguments = ("--out", tmp_path / "out", "--work", tmp_path / "work", "--max-size", "1GiB", *QUICK)
    done = run("convert", pico_checkpoint, *arguments)
    assert done.returncode == 0, done.stderr
    assert "within 1,073,741,824 already" in done.stdout
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["low_layers"] == []
    assert (tmp_path / "out" / f"{pico_checkpoint.name}-LUQ-0of3-Q2_K.gguf").stat().st_size == plan["high_size_bytes"]


def test_a_record_of_another_kind_is_named(converted: Run) -> None:
    result = json.loads(converted.stdout)
    assert_refused(run("verify", result["model"], "--plan", result["scores"]), 1, "scores.json", "Plan")


def test_a_model_that_is_nowhere_is_exit_1(tmp_path: Path) -> None:
    assert_refused(run("convert", tmp_path / "nowhere", "--out", tmp_path / "out"), 1, "nowhere")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = run("convert", tmp_path / "nowhere", "--out", tmp_path / "out", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_help_needs_no_heavy_import() -> None:
    code = (
        "import sys\nfrom luq_gguf.cli.app import app\n"
        "try:\n    app(['convert', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'llama_cpp', 'sklearn'} & set(sys.modules)\nassert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


WRONG_FILES = [
    ("imatrix", "nowhere"),
    ("plan", "nowhere"),
    ("verify", "model.gguf", "--plan", "nowhere.json"),
    ("ask", "nowhere.gguf", "What?"),
    ("ask", "nowhere.gguf", "What?", "--image", "nowhere.png"),
    ("bundle", "nowhere.gguf", "nowhere-too.gguf", "--out", "both.gguf"),
    ("unbundle", "nowhere.gguf", "--out", "apart"),
    ("bench", "nowhere.gguf"),
    ("eval", "nowhere.gguf", "--ref", "nowhere-too.gguf"),
    ("quantize", "nowhere.gguf", "--plan", "nowhere.json", "--imatrix", "i.gguf", "--out", "o.gguf"),
    ("imatrix", "nowhere", "--merge", "nowhere.dat"),
    ("export", "nowhere", "--out", "out"),
    ("analyze", "nowhere", "--out", "out"),
]


@pytest.mark.parametrize("arguments", WRONG_FILES, ids=lambda value: value[0])
def test_a_file_that_is_nowhere_is_one_line(tmp_path: Path, monkeypatch, arguments) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    done = run(*arguments)
    assert_refused(done, 1, "nowhere")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_model_answers_about_an_image(converted: Run, tmp_path: Path) -> None:
    result = json.loads(converted.stdout)
    draw_scene(make_scene(1)).save(tmp_path / "scene.png")
    arguments = ("--mmproj", result["mmproj"], "--image", tmp_path / "scene.png", "--max-tokens", 4, "--threads", 1)
    done = run("ask", result["model"], "What is this?", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["question"] == "What is this?"
    assert json.loads(done.stdout)["answer"]
    assert done.stderr == ""
    (tmp_path / "scene.png").write_bytes(b"no image")
    assert_refused(run("ask", result["model"], "What?", *arguments), 1, "scene.png")
    assert_refused(run("ask", result["model"], "What?", "--image", tmp_path / "scene.png"), 1, "scene.png")


def test_bench_prints_the_speed_of_each_file(converted: Run) -> None:
    model = json.loads(converted.stdout)["model"]
    arguments = ("--prompt", 8, "--generate", 2, "--rounds", 1, "--threads", 1)
    done = run("bench", model, model, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == 2
    assert Path(model).name in run("bench", model, *arguments).stdout


def test_an_output_that_is_a_file_is_one_line(pico_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    done = run("convert", pico_checkpoint, "--out", tmp_path / "out", *QUICK)
    assert_refused(done, 1, str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "mine"


def test_the_table_says_what_the_json_says(converted: Run, pico_checkpoint: Path) -> None:
    result = json.loads(converted.stdout)
    out = Path(result["model"]).parent
    done = run("convert", pico_checkpoint, "--out", out, "--low-layers", 1, *QUICK)
    assert done.returncode == 0, done.stderr
    assert f"{result['size_bytes']:,} bytes" in done.stdout
    for entropy in result["entropy"]:
        assert f"{entropy:.3f}" in done.stdout
    for name in ("model", "mmproj", "plan", "scores", "imatrix"):
        assert result[name] in done.stdout
    assert "nothing to do" in done.stdout


def test_a_title_longer_than_its_table_stays_one_line(pico_checkpoint: Path) -> None:
    done = run("plan", pico_checkpoint, "--low-type", "Q2_K")
    assert done.returncode == 0, done.stderr
    title, head, *rows = done.stdout.splitlines()
    assert title == f"{pico_checkpoint.name}: 3 layers, Q2_K in the low ones, Q4_K_M elsewhere"
    assert len(title) > len(head)
    assert head.split() == ["low", "layers", "bytes", "size", "against", "Q4_K_M"]
    assert [row.split()[0] for row in rows[:4]] == ["0", "1", "2", "3"]
