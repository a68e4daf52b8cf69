"""Images and texts -> calibration samples, some of them held out to judge by.

A JSONL file has a row a sample: {"image", "question", "answer"}, {"question", "answer"} or {"text"}; image
paths are relative to the file and stay below its folder. Without a file: drawn scenes with questions,
and small text-only questions, always the same.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from luq_gguf.demo import FRESH_SEED
from luq_gguf.demo.scenes import draw_scene, make_scene, talk_about, talk_without_picture
from luq_gguf.errors import CalibrationError, ImageError
from luq_gguf.images import Picture, load_image
from luq_gguf.samples import CalibrationSet, Sample

HELD_OUT_SHARE = 0.2
DRAWN_SCENES = 96
DRAWN_TALKS = 48
BUILT_IN_SEED = FRESH_SEED // 2
"""Where drawn scenes begin. The demo model's training drew some 90,000 seeds below 1e9, so that it saw one of these
with odds of about 1 in 100; the scenes that it is judged by begin at 1e9, where it saw none."""
KEYS = ("image", "question", "answer", "text")
FORMS = '{"image", "question", "answer"}, {"question", "answer"} or {"text"}'


def load_calibration(
    source: Path | None,
    *,
    samples: int | None = None,
    seed: int = 0,
    held_out_share: float = HELD_OUT_SHARE,
    skip_bad: bool = False,
) -> CalibrationSet:
    """Read a JSONL file, or draw the built-in set; `samples` takes a seeded subset.

    Held out are a share of the samples of each kind that have an answer, chosen by `seed` and content alone. Raises
    CalibrationError with file and line of the first row that cannot be used (with `skip_bad` it is left out
    and counted), and where nothing is left.
    """
    if source is None:
        found, skipped, name = draw_samples(), 0, "drawn scenes"
    else:
        found, skipped = _read_rows(source, skip_bad=skip_bad)
        name = source.name
    chosen = _choose(found, samples, seed)
    if not chosen:
        raise CalibrationError(f"{source} holds no sample that can be used", hint=f"write rows like {FORMS}")
    out = {sample.id for sample in _held_out(chosen, held_out_share)}
    kept = tuple(sample for sample in chosen if sample.id not in out)
    held_out = tuple(sample for sample in chosen if sample.id in out)
    return CalibrationSet(name, kept, held_out, _digest(kept, held_out), skipped)


def draw_samples() -> list[Sample]:
    """The built-in set: a question about each of many drawn scenes, and questions without a picture."""
    drawn = []
    for number in range(DRAWN_SCENES):
        scene = make_scene(BUILT_IN_SEED + number)
        question = talk_about(scene, turns=1)[0]
        drawn.append(Sample(f"scene-{number}", question.text, question.answer, Picture.of(draw_scene(scene))))
    for number in range(DRAWN_TALKS):
        question = talk_without_picture(BUILT_IN_SEED + number, turns=1)[0]
        drawn.append(Sample(f"talk-{number}", question.text, question.answer))
    return drawn


def _read_rows(path: Path, *, skip_bad: bool) -> tuple[list[Sample], int]:
    samples: list[Sample] = []
    seen: Counter[str] = Counter()
    skipped = 0
    for number, line in _lines(path):
        try:
            samples.append(_read_row(path, f"{path}:{number}", line, seen))
        except CalibrationError:
            if not skip_bad:
                raise
            skipped += 1
    return samples, skipped


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank."""
    try:
        with path.open(encoding="utf-8-sig") as handle:
            for number, line in enumerate(handle, start=1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise CalibrationError(f"cannot read {path}: {error.strerror}", hint="give a JSONL file to --calib") from error
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path} is not UTF-8: {error.reason}", hint="save it as UTF-8") from error


def _read_row(path: Path, where: str, line: str, seen: Counter[str]) -> Sample:
    row = _parse(where, line)
    content = hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:16]
    seen[content] += 1
    name = content if seen[content] == 1 else f"{content}-{seen[content]}"
    if "text" in row:
        return Sample(name, text=row["text"])
    image = _read_image(path, where, row["image"]) if "image" in row else None
    return Sample(name, row["question"], row.get("answer"), image)


def _parse(where: str, line: str) -> dict[str, str]:
    """The known keys of a row; others, like an id, are left alone."""
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CalibrationError(f"{where} is no JSON: {error}", hint=f"write rows like {FORMS}") from error
    if not isinstance(row, dict):
        raise CalibrationError(f"{where} is no object", hint=f"write rows like {FORMS}")
    known = {key: row[key] for key in KEYS if row.get(key) is not None}
    for key, value in known.items():
        if not isinstance(value, str) or not _is_text(value):
            raise CalibrationError(f"{where}: {key} is no text", hint=f"write rows like {FORMS}")
    if ("text" in known) == ("question" in known) or ("text" in known and len(known) > 1):
        raise CalibrationError(f"{where} has the keys {sorted(known)}", hint=f"write rows like {FORMS}")
    return known


def _is_text(value: str) -> bool:
    """Not blank, and without halves of surrogate pairs, which no tokenizer takes."""
    return bool(value.strip()) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _read_image(path: Path, where: str, name: str) -> Picture:
    folder = path.parent.resolve()
    try:
        image = (folder / name).resolve()
        if not image.is_relative_to(folder):
            raise CalibrationError(f"{where}: {name} leads out of the file's folder", hint="put images beside the file")
        return Picture.of(load_image(image, name), name)
    except ImageError as error:
        raise ImageError(f"{where}: {error.message}", path=error.path, hint=error.hint) from error
    except (OSError, ValueError, RuntimeError) as error:  # a path that cannot be resolved
        raise CalibrationError(f"{where}: {name!r} is no path: {error}", hint="give the path of an image") from error


def _choose(found: Iterable[Sample], count: int | None, seed: int) -> list[Sample]:
    """All samples, or a seeded choice with the same share of each kind, in an order of their own."""
    ranked = sorted(found, key=lambda sample: _rank(sample, seed))
    if count is None or count >= len(ranked):
        return ranked
    kinds = Counter(sample.kind for sample in ranked)
    place: Counter[str] = Counter()
    shares = {}
    for sample in ranked:
        place[sample.kind] += 1
        shares[sample.id] = (place[sample.kind] - 0.5) / kinds[sample.kind]
    chosen = {sample.id for sample in sorted(ranked, key=lambda sample: shares[sample.id])[: max(count, 0)]}
    return [sample for sample in ranked if sample.id in chosen]


def _held_out(chosen: Sequence[Sample], share: float) -> list[Sample]:
    """The first of each kind, as many as their share, and never all that there is."""
    held_out: list[Sample] = []
    for kind in ("image", "question"):
        answered = [sample for sample in chosen if sample.kind == kind and sample.answer is not None]
        held_out += answered[: round(share * len(answered))]
    return held_out if len(held_out) < len(chosen) else held_out[1:]


def _rank(sample: Sample, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\n{sample.id}".encode()).digest()


def _digest(*groups: Sequence[Sample]) -> str:
    digest = hashlib.sha256()
    for group in groups:
        for sample in group:
            digest.update(json.dumps([sample.id, sample.turns, sample.question, sample.answer, sample.text]).encode())
            if sample.picture is not None:
                digest.update(sample.picture.key.encode())
        digest.update(b"|")
    return digest.hexdigest()
