"""Print the table of docs/calibration-set.md and, with --sheet FILE, draw all pictures of the set on one sheet."""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from pathlib import Path

from PIL import Image

from luq_gguf.calibration_set import built_in_samples, texts
from luq_gguf.images import grid_size

TOKEN = 28 * 28
CELL, COLUMNS = 112, 12


def read_pictures() -> dict[str, Image.Image]:
    return {sample.picture.name: sample.picture.read() for sample in built_in_samples() if sample.picture is not None}


def tokens_of(image: Image.Image) -> int:
    height, width = grid_size(image.height, image.width, 28, 4 * TOKEN, 16384 * TOKEN)
    return height * width // TOKEN


def table(pictures: dict[str, Image.Image]) -> list[str]:
    """Pictures, samples and image tokens of each kind, then the texts by language, as Markdown."""
    kinds: dict[str, list[int]] = defaultdict(list)
    for name, image in pictures.items():
        kinds[name.split("-")[0]].append(tokens_of(image))
    samples = built_in_samples()
    asked = Counter(sample.picture.name.split("-")[0] for sample in samples if sample.picture is not None)
    lines = [
        "| Kind | Pictures | Samples | Image tokens: fewest | mean | most | all pictures |",
        "|---|---|---|---|---|---|---|",
    ]
    everything = [count for counts in kinds.values() for count in counts]
    for kind, counts in [*kinds.items(), ("all", everything)]:
        mean = round(sum(counts) / len(counts))
        number = asked.total() if kind == "all" else asked[kind]
        lines.append(
            f"| {kind} | {len(counts)} | {number} | {min(counts)} | {mean} | {max(counts)} | {sum(counts):,} |"
        )
    languages = Counter(row["language"] for row in texts.rows())
    chats = sum("turns" in row for row in texts.rows())
    lines += [
        "",
        f"{languages.total()} texts, {chats} of them questions with answers and the others passages: "
        + ", ".join(f"{language} {count}" for language, count in languages.most_common())
        + ".",
    ]
    return lines


def draw_sheet(pictures: dict[str, Image.Image]) -> Image.Image:
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * CELL, rows * CELL), (128, 132, 138))
    for place, image in enumerate(pictures.values()):
        small = image.copy()
        small.thumbnail((CELL - 6, CELL - 6), Image.Resampling.LANCZOS)
        x, y = place % COLUMNS * CELL, place // COLUMNS * CELL
        sheet.paste(small, (x + (CELL - small.width) // 2, y + (CELL - small.height) // 2))
    return sheet.quantize(160, dither=Image.Dither.NONE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sheet", type=Path, help="PNG to draw all pictures on")
    arguments = parser.parse_args()
    pictures = read_pictures()
    print("\n".join(table(pictures)))
    if arguments.sheet:
        draw_sheet(pictures).save(arguments.sheet, optimize=True)


if __name__ == "__main__":
    main()
