"""The demo: convert the embedded checkpoint, then let the 16-bit and the small file answer side by side."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

from luq_gguf import pipeline
from luq_gguf.amounts import format_bytes
from luq_gguf.bench import DecodeSamples, measure_files
from luq_gguf.calibration import SHAPES
from luq_gguf.cli.tables import format_conversion, make_table, render
from luq_gguf.demo import CHECKPOINT, FRESH_SEED
from luq_gguf.demo.scenes import QUESTION_KINDS, Question, ask_about, draw_scene, make_scene
from luq_gguf.progress import Progress
from luq_gguf.runtime import Runtime

if TYPE_CHECKING:
    from PIL import Image
    from rich.table import Table

LOW_LAYERS = 4
PICTURES = 4


def run_demo(out: Path, threads: int, progress: Progress) -> str:
    """Convert, ask, measure; returns what to print. The files and pictures stay in `out`."""
    settings = pipeline.Settings(low_layers=LOW_LAYERS, calib=SHAPES, threads=threads)
    result = pipeline.convert(str(CHECKPOINT), out, settings, progress)
    assert result.mmproj is not None
    full = pipeline.export_model(str(CHECKPOINT), out / "16bit", "auto", "f16", progress).text
    pictures = draw_pictures(out / "images")
    answers = [answer_all(file, result.mmproj, pictures, threads, progress) for file in (full, result.model)]
    samples = measure_files([full, result.model], prompt=128, generate=32, threads=threads or None, repeat=3)
    path, _, questions = pictures[0]
    lines = (
        format_conversion(result),
        "",
        answers_table(pictures, answers[0], answers[1]),
        "",
        speed_table(samples, [full, result.model, result.mmproj]),
        "",
        f'ask it yourself: luq-gguf ask {result.model} --mmproj {result.mmproj} --image {path} "{questions[-2].text}"',
    )
    return render(*lines)


def draw_pictures(folder: Path) -> list[tuple[Path, Image.Image, list[Question]]]:
    """Fresh scenes as PNG files, each with a question of every kind."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for number in range(PICTURES):
        scene = make_scene(FRESH_SEED + number)
        image, path = draw_scene(scene), folder / f"scene-{number + 1}.png"
        image.save(path)
        rng = random.Random(number)
        pictures.append((path, image, [ask_about(scene, kind, rng) for kind in QUESTION_KINDS]))
    return pictures


def answer_all(
    file: Path,
    mmproj: Path,
    pictures: list[tuple[Path, Image.Image, list[Question]]],
    threads: int,
    progress: Progress,
) -> list[list[str]]:
    """The file's answers to every question about every picture."""
    answers = []
    with Runtime(file, mmproj, threads=threads) as runtime:
        for number, (_, image, questions) in enumerate(pictures):
            answers.append([runtime.answer(question.text, image) for question in questions])
            progress(f"ask {'LUQ' if 'LUQ' in file.name else '16-bit'}", number + 1, len(pictures))
    return answers


def answers_table(
    pictures: list[tuple[Path, Image.Image, list[Question]]], full: list[list[str]], small: list[list[str]]
) -> Table:
    """Question by question: the right answer and both files' answers; a cross marks a wrong one."""
    table = make_table("answers through llama.cpp", ("picture", "question", "16 bits", "LUQ", "right answer"))
    for column in table.columns[1:]:
        column.justify = "left"
    for (path, _, questions), of_full, of_small in zip(pictures, full, small, strict=True):
        for question, left, right in zip(questions, of_full, of_small, strict=True):
            cells = [answer if answer == question.answer else f"{answer} (x)" for answer in (left, right)]
            table.add_row(path.stem, question.text, *cells, question.answer)
    return table


def speed_table(samples: list[DecodeSamples], files: list[Path]) -> Table:
    """Sizes and tokens per second of the 16-bit and the small file."""
    table = make_table("on this CPU", ("file", "size", "prompt tokens/s", "generated tokens/s"))
    for file, sample in zip(files, samples, strict=False):
        speeds = (f"{sample.prompt_tps:,.0f}", f"{sample.generate_tps:,.0f}")
        table.add_row(file.name, format_bytes(file.stat().st_size), *speeds)
    table.add_row(files[-1].name, format_bytes(files[-1].stat().st_size), "", "")
    return table
