"""The demo: the embedded checkpoint, what was drawn for it, and the show."""

from __future__ import annotations

import json
import random
import re
import shlex
import time
from pathlib import Path

import pytest
from gguf import GGUFReader

from luq_gguf.checkpoint import Checkpoint
from luq_gguf.demo import CHECKPOINT, FRESH_SEED
from luq_gguf.demo.scenes import CLOSED_KINDS, QUESTION_KINDS, Question, ask_about, draw_scene, make_scene
from luq_gguf.demo.show import LOW_LAYERS, PICTURES
from luq_gguf.export import export_text, export_vision
from luq_gguf.families import find_family
from luq_gguf.images import load_image
from luq_gguf.runtime import Runtime
from tests.program import Run, run_program


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path, float]:
    """What `luq-gguf demo` printed and left, and how long it took."""
    out, started = tmp_path_factory.mktemp("demo") / "demo-output", time.monotonic()
    done = run_program("demo", "--out", out)
    assert done.returncode == 0, done.stderr
    return done, out, time.monotonic() - started


def test_the_embedded_checkpoint_is_small_and_in_the_hubs_form() -> None:
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) < 25_000_000
    config = json.loads((CHECKPOINT / "config.json").read_text())
    assert config["architectures"] == ["Qwen2_5_VLForConditionalGeneration"]
    assert config["num_hidden_layers"] == 12
    names = {path.name for path in CHECKPOINT.iterdir()}
    assert names >= {"model.safetensors", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"}


def holds_all_words(text: str, question: Question) -> bool:
    """Cells of a table are broken into lines."""
    return set(f"{question.text} {question.answer}".split()) <= set(text.split())


def test_it_shows_sizes_entropies_answers_and_speed(shown: tuple[Run, Path, float]) -> None:
    done, out, seconds = shown
    model = out / f"{CHECKPOINT.name}-LUQ-{LOW_LAYERS}of12-IQ1_M.gguf"
    assert f"{model.stat().st_size:,} bytes" in done.stdout
    scores = json.loads((out / "scores.json").read_text())
    for row in scores["entropy"]["output_multimodal"]:
        assert f"{row['mean']:.3f}" in done.stdout
    for number in range(PICTURES):
        assert f"scene-{number + 1}" in done.stdout
        scene, rng = make_scene(FRESH_SEED + number), random.Random(number)
        for kind in QUESTION_KINDS:
            assert holds_all_words(done.stdout, ask_about(scene, kind, rng))
    speeds = re.findall(r"\.gguf +[\d.]+ \w+ +([\d,]+) +([\d,]+)", done.stdout)
    assert len(speeds) == 2
    assert all(int(number.replace(",", "")) > 0 for pair in speeds for number in pair)
    assert seconds < 180


def test_what_it_wrote_is_what_it_says(shown: tuple[Run, Path, float]) -> None:
    _, out, _ = shown
    model = next(out.glob("*-LUQ-*.gguf"))
    assert run_program("verify", model, "--plan", out / "plan.json").returncode == 0
    kinds = [tensor.tensor_type.name for tensor in GGUFReader(model).tensors]
    assert kinds.count("IQ1_M") == 7 * LOW_LAYERS
    pictures = sorted((out / "images").glob("*.png"))
    assert len(pictures) == PICTURES
    for number, path in enumerate(pictures):
        assert load_image(path).tobytes() == draw_scene(make_scene(FRESH_SEED + number)).tobytes()


def test_the_command_that_it_names_answers(shown: tuple[Run, Path, float]) -> None:
    done, out, _ = shown
    named = shlex.split(done.stdout.partition("ask it yourself: ")[2].splitlines()[0])
    assert named[:2] == ["luq-gguf", "ask"]
    asked = run_program(*named[1:])
    assert asked.returncode == 0, asked.stderr
    with Runtime(next(out.glob("*-LUQ-*.gguf")), next(out.glob("mmproj-*.gguf"))) as runtime:
        assert asked.stdout.strip() == runtime.answer(named[-1], load_image(out / "images" / "scene-1.png"))
    assert set(asked.stdout.split()) <= set(done.stdout.split())


def test_a_second_demo_converts_nothing(shown: tuple[Run, Path, float]) -> None:
    _, out, _ = shown
    before = {path: path.stat().st_mtime_ns for path in (*out.glob("*.gguf"), out / "manifest.json")}
    again = run_program("demo", "--out", out)
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
def test_the_16_bit_model_answers_closed_questions_about_fresh_scenes(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(CHECKPOINT)
    family = find_family(checkpoint.config, checkpoint)
    export_text(checkpoint, family, tmp_path / "text.gguf", dtype="f16")
    export_vision(checkpoint, family, tmp_path / "vision.gguf", dtype="f16")
    right = asked = 0
    with Runtime(tmp_path / "text.gguf", tmp_path / "vision.gguf") as runtime:
        for number in range(100):
            scene, rng = make_scene(FRESH_SEED + number), random.Random(number)
            image = draw_scene(scene)
            for kind in CLOSED_KINDS:
                question = ask_about(scene, kind, rng)
                asked += 1
                right += runtime.answer(question.text, image, max_tokens=32) == question.answer
    assert right / asked >= 0.85, f"{right} of {asked}"
