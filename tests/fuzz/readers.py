"""The readers that are fuzzed: what sound files they get, how those are damaged, and the call."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from luq_gguf.artifacts import LayerScores, Plan, read_record
from luq_gguf.bundle import bundle, split_bundle, unbundle
from luq_gguf.calibration_images import Looker
from luq_gguf.calibration_parquet import ParquetReader, read_parquet
from luq_gguf.chat import ChatRenderer
from luq_gguf.checkpoint import Checkpoint, read_config
from luq_gguf.errors import CalibrationError
from luq_gguf.evidence import GROUPS, OFFSET, Evidence
from luq_gguf.export import export_text, export_vision, text_layout, write_header_only
from luq_gguf.families import find_family
from luq_gguf.frontier import better_preset
from luq_gguf.gguf_file import GGUFFile
from luq_gguf.images import fit_to_grid, grid_limits, load_image, patchify
from luq_gguf.imatrix import Sums, floor_importance, mix_importance, read_sums, write_sums
from luq_gguf.importance import read_importance
from luq_gguf.judging import FIGURES, Quality
from luq_gguf.layout import ModelRecord
from luq_gguf.manifest import Manifest
from luq_gguf.planning import choose_order
from luq_gguf.reference import Reference, read_reference, write_reference
from luq_gguf.tokenizer_file import load_tokenizer
from luq_gguf.verify import verify_types
from luq_gguf.vqa.benchmarks import find_benchmark
from luq_gguf.vqa.questions import read_questions
from tests import pico
from tests.fuzz import mutations as damage
from tests.ggufs import Shape, dat_bytes, tensor_shapes, write_imatrix, write_text_gguf
from tests.picos import TEXT_ONLY, build_family
from tests.published import PUBLISHED

SMALL = Shape(layers=1, vocabulary=64)
CHAT = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in the picture?"}]}]


@dataclass(frozen=True)
class Reader:
    """`prepare` fills a folder; `targets` are the files that are damaged, and how; `read` is given the folder."""

    prepare: Callable[[Path], None]
    targets: dict[str, damage.Mutation]
    read: Callable[[Path], object]


def prepare_checkpoint(folder: Path) -> None:
    pico.build_pico(folder, layers=1, shards=2)
    (folder / "README.md").write_text(pico.CARD)


def read_checkpoint(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    for name in list(checkpoint.tensors)[:3]:
        checkpoint.read_float32(name)


def read_family(folder: Path) -> None:
    checkpoint = Checkpoint(folder, read_config(folder), {}, "")
    family = find_family(checkpoint.config, checkpoint)
    text_layout(family, "f16")
    family.vision_tensors()


def read_processor(folder: Path) -> None:
    checkpoint = Checkpoint(folder, read_config(folder), {}, "")
    family = find_family(checkpoint.config, checkpoint)
    patchify(fit_to_grid(Image.new("RGB", (60, 40), "red"), grid_limits(family.image_grid)), family)


def read_side_files(folder: Path) -> None:
    checkpoint = Checkpoint(folder, read_config(folder), {}, "")
    family = find_family(checkpoint.config, checkpoint)
    load_tokenizer(checkpoint, family.tokenizer_pattern).encode("What is in the picture?")
    target = folder / "header.gguf"
    try:
        write_header_only(checkpoint, family, target)
        metadata = GGUFFile.open(target).metadata
        for key in metadata:
            metadata[key]
    finally:
        target.unlink(missing_ok=True)


def prepare_families(folder: Path) -> None:
    """config.json of every family, published or pico, with a processor file for those that have one."""
    for name, (config, _, _) in PUBLISHED.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    for family in TEXT_ONLY:
        build_family(folder / family, family, layers=1)
        shutil.move(folder / family / "config.json", folder / f"{family}.json")
        shutil.rmtree(folder / family)


def read_any_family(folder: Path) -> None:
    """The damaged one is alone in the folder: the driver leaves only that."""
    (path,) = folder.iterdir()
    path.rename(folder / "config.json")
    try:
        config = read_config(folder)
    finally:
        (folder / "config.json").rename(path)
    family = find_family(config)
    text_layout(family, "f16")
    family.vision_tensors()


def prepare_sentencepiece(folder: Path) -> None:
    build_family(folder, "gemma-3", layers=6)


def read_sentencepiece(folder: Path) -> None:
    checkpoint = Checkpoint(folder, read_config(folder), {}, "")
    family = find_family(checkpoint.config)
    load_tokenizer(checkpoint, None).encode("What is in the picture?")
    family.text_metadata(checkpoint, dtype="f16")


def prepare_template(folder: Path) -> None:
    (folder / "template.jinja").write_text(pico.CHAT_TEMPLATE)


class _Template:
    """One child for all cases: it is started again only when it died."""

    def __init__(self) -> None:
        self.renderer = ChatRenderer("", seconds=0.5)

    def __call__(self, folder: Path) -> None:
        self.renderer.template = (folder / "template.jinja").read_text(encoding="utf-8", errors="replace")
        self.renderer.render([CHAT, [{"role": "user", "content": "Who?"}]])


FORMS = ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "TGA", "ICO", "JPEG2000", "AVIF")


def prepare_images(folder: Path) -> None:
    Image.init()
    noise = Image.effect_noise((24, 16), 60)
    for form in (form for form in FORMS if form in Image.SAVE):
        buffer = io.BytesIO()
        noise.convert("RGB").save(buffer, form)
        (folder / f"image.{form}").write_bytes(buffer.getvalue())
    noise.convert("P").save(folder / "palette.png", transparency=3)
    Image.fromarray(np.asarray(noise).astype(np.uint16) * 200).save(folder / "deep.png")
    noise.convert("CMYK").save(folder / "print.jpg")
    noise.save(folder / "moving.gif", save_all=True, append_images=[noise.rotate(90)])


def read_images(folder: Path) -> None:
    """The damaged one is alone in the folder: the driver leaves only that."""
    (path,) = folder.iterdir()
    load_image(path)
    load_image(path.read_bytes())


def prepare_gguf(folder: Path) -> None:
    write_text_gguf(folder / "model.gguf", SMALL, tokens=64)


def read_gguf(folder: Path) -> None:
    file = GGUFFile.open(folder / "model.gguf")
    for key in file.metadata:
        file.metadata[key]
    for name in file.tensors:
        file.read_raw(name)
    GGUFFile.open(folder / "model.gguf", header_only=True)


def prepare_imatrix(folder: Path) -> None:
    write_imatrix(folder / "imatrix.gguf", tensor_shapes(SMALL))


def read_imatrix(folder: Path) -> None:
    floor_importance(read_importance(folder / "imatrix.gguf"))


def prepare_dat(folder: Path) -> None:
    weights = {name: shape for name, shape in tensor_shapes(SMALL).items() if len(shape) > 1}
    entries = [(name.encode(), 7, [1.0] * shape[1]) for name, shape in weights.items()]
    (folder / "imatrix.dat").write_bytes(dat_bytes(entries))


def read_dat(folder: Path) -> None:
    floor_importance(read_importance(folder / "imatrix.dat"))


def prepare_bundle(folder: Path) -> None:
    build = pico.build_pico(folder.parent / "bundle-pico", layers=1)
    checkpoint = Checkpoint.open(build)
    family = find_family(checkpoint.config, checkpoint)
    export_text(checkpoint, family, folder / "text.gguf")
    export_vision(checkpoint, family, folder / "mmproj.gguf")
    bundle(folder / "text.gguf", folder / "mmproj.gguf", folder / "whole.gguf")
    for name in ("text.gguf", "mmproj.gguf"):
        (folder / name).unlink()
    shutil.rmtree(build)


def damage_bundle(data: bytes, rng) -> bytes:
    """Mostly the trailer, which is at the end."""
    if rng.random() < 0.3:
        return damage.damage_bytes(data, rng)
    cut = max(0, len(data) - 700)
    return data[:cut] + damage.damage_bytes(data[cut:], rng)


def read_bundle(folder: Path) -> None:
    path = folder / "whole.gguf"
    GGUFFile.open(path)
    split_bundle(path)
    unbundle(path, folder / "out")


def prepare_records(folder: Path) -> None:
    write_text_gguf(folder / "model.gguf", SMALL)
    file = GGUFFile.open(folder / "model.gguf")
    types = {name: tensor.type.name for name, tensor in file.tensors.items()}
    plan = {
        "format": "luq-gguf plan 1", "checkpoint": "a" * 64, "layers": 1, "order_name": "depth", "order": [0],
        "low_layers": [0], "low_type": "Q2_K", "high_type": "Q4_K_M", "types": types, "size_bytes": file.data_end,
        "high_size_bytes": 12, "f16_size_bytes": 32, "bits_per_weight": 3.5, "fallbacks": {}, "notes": ["a"],
    }  # fmt: skip
    row = {"mean": 5.5, "spread": 0.1, "by_seed": [5.4, 5.6], "vectors": 1000, "clusters": 100}
    scores = {
        "format": "luq-gguf scores 1", "checkpoint": "a" * 64, "layers": 1, "entropy": {"output_text": [row]},
        "stability": {"output_text": 1.0}, "tokens": {"text": 9}, "samples": 3, "held_out": 1, "compute_type": "f32",
        "seed": 0, "warnings": [],
    }  # fmt: skip
    model = {
        "format": "luq-gguf model 1", "checkpoint": "a" * 64, "name": "pico", "layers": 1, "source_bytes": 99,
        "dataset": "d",
    }  # fmt: skip
    manifest = {
        "format": "luq-gguf manifest 1", "request": "r", "checkpoint": "a" * 64,
        "checkpoint_files": {"config.json": "b"}, "calibration": "c", "name": "pico", "settings": {"low_layers": 1},
        "versions": {"python": "3"},
        "files": {"model.gguf": {"bytes": 1, "sha256": "d", "changed_ns": 1}}, "layer_bytes": [1],
        "seconds": {"a": 1.0},
    }  # fmt: skip
    figure = {"value": 0.5, "low": 0.4, "high": 0.6}
    group = {"samples": 3, "tokens": 9, "figures": dict.fromkeys(FIGURES, figure)}
    quality = {"format": "luq-gguf quality 1", "reference": "r", "groups": {"all": group}}
    evidence = {
        "format": "luq-gguf evidence 1", "checkpoint": "a" * 64, "low_type": "IQ1_M", "damage_order": [0],
        "errors": {"blk.0.attn_q.weight": {"Q2_K": 0.1}},
        "coefficients": dict.fromkeys((*GROUPS, OFFSET), 1.0), "factors": [1.0],
        "probes": 3, "fit_error": 0.2,
    }  # fmt: skip
    point = {
        "preset": True, "order_name": "", "low_type": "IQ1_M", "high_type": "Q2_K", "low_layers": [], "layers": 1,
        "size_bytes": 5, "bits_per_weight": 2.6, "predicted_tps": None, "quality": quality,
    }  # fmt: skip
    frontier = {
        "format": "luq-gguf frontier 1", "model": "pico", "checkpoint": "a" * 64, "cpu": None, "threads": None,
        "points": [point],
    }  # fmt: skip
    contents = {
        "plan": plan, "scores": scores, "model": model, "manifest": manifest, "quality": quality, "evidence": evidence,
        "frontier": frontier,
    }  # fmt: skip
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def read_records(folder: Path) -> None:
    scores = read_record(folder / "scores.json", LayerScores)
    choose_order(scores, "entropy", scores.layers)
    read_record(folder / "model.json", ModelRecord)
    read_record(folder / "manifest.json", Manifest)
    read_record(folder / "evidence.json", Evidence)
    better_preset(folder, "a" * 64, 5, read_record(folder / "quality.json", Quality))
    verify_types(folder / "model.gguf", read_record(folder / "plan.json", Plan))


def prepare_arrays(folder: Path) -> None:
    rng = np.random.default_rng(0)
    names = ("blk.0.attn_q.weight", "blk.0.ffn_gate.weight", "output.weight")
    kinds = ("image", "multimodal_text", "text")
    sums = Sums(
        {name: {kind: rng.random(8) for kind in kinds} for name in names},
        {name: dict.fromkeys(kinds, 7) for name in names}, "set",
    )  # fmt: skip
    write_sums(folder / "sums.safetensors", sums)
    reference = Reference(
        samples=("a", "b"), starts=np.array([0, 2, 5]), prompts=np.array([7, 8], np.int32),
        answers=np.arange(5, dtype=np.int32),
        top=np.ones((5, 4), np.int32), log_probabilities=np.full((5, 4), -1, np.float32),
        rest=np.zeros(5, np.float32), context={"seed": 1},
    )  # fmt: skip
    write_reference(folder / "reference.safetensors", reference)


def read_arrays(folder: Path) -> None:
    read_reference(folder / "reference.safetensors")
    mix_importance(read_sums(folder / "sums.safetensors"), 0.5)


def prepare_calibration(folder: Path) -> None:
    """The same rows in every form, each with an image beside it or within it."""
    import pyarrow
    from pyarrow import parquet

    Image.new("RGB", (30, 20), "blue").save(folder / "blue.png")
    data = (folder / "blue.png").read_bytes()
    rows = [
        {"image": "blue.png", "question": "Which color?", "answer": "blue"},
        {"question": "How many days has a week?", "answer": "seven"},
        {"text": "The quick brown fox jumps over the lazy dog."},
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = [{"from": "human", "value": "<image>\nWhich color?"}, {"from": "gpt", "value": "Blue."}]
    sure = [{"from": "human", "value": "Are you sure?"}, {"from": "gpt", "value": "Yes."}]
    (folder / "rows.json").write_text(
        json.dumps([{"id": 1, "image": "blue.png", "conversations": [*said, *sure]}, *rows])
    )
    encoded = base64.b64encode(data).decode()
    header = "index\timage\tquestion\tA\tB\tanswer\timage_path"
    lines = [header, f"0\t{encoded}\tWhich?\tred\tblue\tB\t", "1\t0\tSure?\t\t\tyes\t", "2\t\tAnd?\t\t\tyes\tblue.png"]
    (folder / "rows.tsv").write_text("\n".join(lines) + "\n")
    table = [{"image": {"bytes": data}, "question": f"{number}?", "answers": ["x"]} for number in range(5)]
    parquet.write_table(pyarrow.Table.from_pylist(table), folder / "rows.parquet")


def damage_lines(data: bytes, rng) -> bytes:
    """One row as JSON, or the lines."""
    lines = data.splitlines()
    if rng.random() < 0.3 or not lines:
        return damage.damage_text(data, rng)
    place = rng.randrange(len(lines))
    lines[place] = damage.damage_json(lines[place], rng)
    return b"\n".join(lines)


def read_calibration(form: str) -> Callable[[Path], None]:
    """The reader of one form."""

    def read(folder: Path) -> None:
        from luq_gguf.calibration import load_calibration

        group = load_calibration(folder / f"rows.{form}")
        for sample in (*group.samples, *group.held_out):
            if sample.picture is not None:
                sample.picture.read()

    return read


def read_parquet_rows(folder: Path) -> None:
    """What `load_calibration` does with parquet, but with one child for all cases; damage may end it."""
    path = folder / "rows.parquet"
    looker = Looker()
    with path.open("rb") as handle:
        for row in list(read_parquet(path, handle, read_parquet_rows.renderer)):
            if isinstance(row, CalibrationError):
                raise row
            picture = row.finish(looker).picture
            if picture is not None:
                picture.read()


read_parquet_rows.renderer = ParquetReader()


def read_benchmark(folder: Path) -> None:
    """A benchmark's table, each question with its picture."""
    rule = find_benchmark("mmbench")
    with Looker() as looker:
        for question in rule.prepare(read_questions(folder / "mmbench.tsv", rule.needed)):
            question.finish(looker)
            rule.score(question, "B")


def prepare_benchmark(folder: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), "blue").save(buffer, "PNG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    header = "index\timage\tquestion\thint\tA\tB\tanswer\tcategory"
    lines = [header, f"0\t{encoded}\tWhich?\t\tred\tblue\tB\tcolor", "1\t0\tSure?\tLook.\tyes\tno\tA\tmood"]
    (folder / "mmbench.tsv").write_text("\n".join(lines) + "\n")


RECORDS = ("plan", "scores", "model", "manifest", "quality", "evidence", "frontier")
JSON_SIDE_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json")
READERS: dict[str, Reader] = {
    "safetensors": Reader(
        prepare_checkpoint,
        {
            "model-00001-of-00002.safetensors": damage.damage_safetensors,
            "model-00002-of-00002.safetensors": damage.damage_safetensors,
            "model.safetensors.index.json": damage.damage_json,
        },
        read_checkpoint,
    ),
    "config": Reader(prepare_checkpoint, {"config.json": damage.damage_json}, read_family),
    "families": Reader(prepare_families, {"*": damage.damage_json}, read_any_family),
    "sentencepiece": Reader(
        prepare_sentencepiece,
        {
            "tokenizer.model": damage.damage_bytes,
            "tokenizer.json": damage.damage_json,
            "tokenizer_config.json": damage.damage_json,
        },
        read_sentencepiece,
    ),
    "preprocessor": Reader(prepare_checkpoint, {"preprocessor_config.json": damage.damage_json}, read_processor),
    "tokenizer": Reader(
        prepare_checkpoint,
        dict.fromkeys(JSON_SIDE_FILES, damage.damage_json) | {"README.md": damage.damage_text},
        read_side_files,
    ),
    "template": Reader(prepare_template, {"template.jinja": damage.damage_template}, _Template()),
    "image": Reader(prepare_images, {"*": damage.damage_bytes}, read_images),
    "gguf": Reader(prepare_gguf, {"model.gguf": damage.damage_gguf}, read_gguf),
    "imatrix": Reader(prepare_imatrix, {"imatrix.gguf": damage.damage_gguf}, read_imatrix),
    "imatrix-dat": Reader(prepare_dat, {"imatrix.dat": damage.damage_bytes}, read_dat),
    "bundle": Reader(prepare_bundle, {"whole.gguf": damage_bundle}, read_bundle),
    "records": Reader(
        prepare_records,
        dict.fromkeys([f"{name}.json" for name in RECORDS], damage.damage_json),
        read_records,
    ),
    "arrays": Reader(
        prepare_arrays,
        dict.fromkeys(("sums.safetensors", "reference.safetensors"), damage.damage_safetensors),
        read_arrays,
    ),
    "calibration": Reader(prepare_calibration, {"rows.jsonl": damage_lines}, read_calibration("jsonl")),
    "calibration-json": Reader(prepare_calibration, {"rows.json": damage.damage_json}, read_calibration("json")),
    "calibration-table": Reader(prepare_calibration, {"rows.tsv": damage.damage_bytes}, read_calibration("tsv")),
    "benchmark": Reader(prepare_benchmark, {"mmbench.tsv": damage.damage_bytes}, read_benchmark),
    "calibration-parquet": Reader(prepare_calibration, {"rows.parquet": damage.damage_bytes}, read_parquet_rows),
}
