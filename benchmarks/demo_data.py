"""Fresh scenes with questions and answers as calibration data for the demo model, more than the shipped set has.

    python -m benchmarks.demo_data --out FOLDER

Writes pictures and `scenes.jsonl`: some questions about each scene, and questions without a picture. The model was
trained on none of them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from luq_gguf.demo import FRESH_SEED
from luq_gguf.demo.scenes import draw_scene, make_scene, talk_about, talk_without_picture

FIRST_SEED = FRESH_SEED + 100_000
SCENES, TALKS, TURNS = 150, 100, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(SCENES):
        scene = make_scene(FIRST_SEED + number)
        name = f"scene-{number}.png"
        draw_scene(scene).save(out / name)
        rows += [
            {"image": name, "question": question.text, "answer": question.answer}
            for question in talk_about(scene, turns=TURNS)
        ]
    for number in range(TALKS):
        for question in talk_without_picture(FIRST_SEED + number, turns=1):
            rows.append({"question": question.text, "answer": question.answer})
    path = out / "scenes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"wrote {len(rows)} rows to {path}")


if __name__ == "__main__":
    main()
