"""Bad images, weights at the edge, and our own files cut, edited or of another model: one clear line, exit 1 or 2."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from luq_gguf.gguf_file import GGUFFile
from tests.ggufs import write_imatrix
from tests.hostile import FEW, assert_nothing_made, assert_refused, change_json, run, weights
from tests.pico import build_pico, pico_shapes
from tests.program import QUICK, listing

Change = Callable[[Path], object]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *extra: bytes, deep: int = 8, color: int = 2, data: bytes = bytes(100)) -> bytes:
    """A PNG that claims a size, with whatever else is to stand in it."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, deep, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def drawn(form: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image or Image.effect_noise((64, 48), 60).convert("RGB")).save(buffer, form, **options)
    return buffer.getvalue()


BOMB = zlib.compress(bytes(200_000_000))
BAD_IMAGES = {
    "nothing": b"",
    "no image": b"\x00" * 500,
    "a picture of 60,000 x 60,000": png(60_000, 60_000),
    "2 billion x 2 billion": png(2**31 - 1, 2**31 - 1),
    "no width": png(0, 5),
    "a bomb in a text": png(8, 8, chunk(b"zTXt", b"a\0\0" + BOMB)),
    "a bomb in a profile": png(8, 8, chunk(b"iCCP", b"a\0\0" + BOMB)),
    "a bomb in an international text": png(8, 8, chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB)),
    "cut PNG": drawn("PNG")[:900],
    "cut JPEG": drawn("JPEG")[:400],
    "cut WebP": drawn("WEBP")[:200],
    "cut GIF": drawn("GIF")[:60],
    "cut TIFF": drawn("TIFF")[:100],
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "SVG behind XML": b"<?xml version='1.0'?><!DOCTYPE svg [<!ENTITY a 'b'>]><svg>&a;</svg>",
    "HTML": b"<!doctype html><script>alert(1)</script>",
    "PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj",
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(id) %pipe%id\n",
    "a video": b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom",
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_a_bad_image_is_named_with_its_row(pico_checkpoint: Path, tmp_path: Path, capfd, case: str) -> None:
    (tmp_path / "picture.png").write_bytes(BAD_IMAGES[case])
    rows = [{"image": "picture.png", "question": "What?", "answer": "a"}] + [{"text": f"text {n}"} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("convert", pico_checkpoint, "--out", tmp_path / "out", *FEW, "--calib", tmp_path / "rows.jsonl")
    assert_refused(capfd, arguments, "rows.jsonl", "picture.png")
    assert_nothing_made(tmp_path / "out")


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_an_image_that_is_no_file_is_named(pico_checkpoint: Path, tmp_path: Path, capfd, kind: str) -> None:
    path = tmp_path / "picture.png"
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "device": lambda: path.symlink_to("/dev/zero")}[kind]()
    rows = [{"image": "picture.png", "question": "What?", "answer": "a"}] + [{"text": f"text {n}"} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("convert", pico_checkpoint, "--out", tmp_path / "out", *FEW, "--calib", tmp_path / "rows.jsonl")
    assert_refused(capfd, arguments, "rows.jsonl", "picture.png")


def test_every_sound_kind_of_image_is_measured(pico_checkpoint: Path, tmp_path: Path, capfd) -> None:
    """CMYK, 16 bits, palette, alpha, turned by EXIF, moving, one pixel: none of them stops a conversion."""
    noise = Image.effect_noise((90, 60), 60)
    turned = Image.Exif()
    turned[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text("note", "x" * 1000, zip=True)
    pictures = {
        "cmyk.jpg": drawn("JPEG", noise.convert("CMYK")),
        "deep.png": drawn("PNG", Image.fromarray(np.asarray(noise).astype(np.uint16) * 200)),
        "palette.png": drawn("PNG", noise.convert("P"), transparency=3),
        "alpha.webp": drawn("WEBP", noise.convert("RGBA")),
        "turned.jpg": drawn("JPEG", noise, exif=turned),
        "moving.gif": drawn("GIF", noise, save_all=True, append_images=[noise.rotate(90)]),
        "pixel.png": drawn("PNG", Image.new("RGB", (1, 1))),
        "text.png": drawn("PNG", noise, pnginfo=text),
    }
    for name, data in pictures.items():
        (tmp_path / name).write_bytes(data)
    rows = [{"image": name, "question": "What is it?", "answer": "noise"} for name in pictures] * 2
    rows += [{"text": f"A text that says {number}."} for number in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("analyze", pico_checkpoint, "--out", tmp_path / "out", "--calib", tmp_path / "rows.jsonl")
    code, out, err = run(capfd, *arguments, "--compute-type", "f32", "--json")
    assert code == 0, err
    assert json.loads(out)["tokens"]["image"] > 16 * 6


EDGES: dict[str, Callable[[dict[str, np.ndarray]], object]] = {
    "a layer of zeros": lambda values: [
        value.fill(0) for name, value in values.items() if name.startswith("model.layers.2.") and "norm" not in name
    ],
    "denormals": lambda values: values["model.layers.2.mlp.up_proj.weight"].fill(1e-40),
    "beyond F16": lambda values: values["model.layers.2.mlp.up_proj.weight"].__setitem__((0, 0), 1e6),
}


@pytest.mark.parametrize(
    ("case", "low_type"),
    [("a layer of zeros", "IQ1_M"), ("denormals", "IQ1_M"), *((case, "Q2_K") for case in EDGES)],
)
def test_weights_at_the_edge_are_converted(tmp_path: Path, capfd, case: str, low_type: str) -> None:
    model = build_pico(tmp_path / "pico")
    weights(EDGES[case])(model)
    arguments = (*FEW, "--low-type", low_type, "--low-layers", 1)
    code, out, err = run(capfd, "convert", model, "--out", tmp_path / "out", *arguments, "--order", "depth", "--json")
    assert code == 0, err
    found = GGUFFile.open(Path(json.loads(out)["model"]))
    assert found.tensors["blk.2.ffn_up.weight"].type.name == low_type


def test_a_value_beyond_f16_is_named_where_f16_is_asked_for(tmp_path: Path, capfd) -> None:
    model = build_pico(tmp_path / "pico")
    weights(EDGES["beyond F16"])(model)
    arguments = ("export", model, "--out", tmp_path / "out", "--dtype", "f16")
    assert_refused(capfd, arguments, "model.layers.2.mlp.up_proj.weight", "f16", "use bf16")
    assert_nothing_made(tmp_path / "out")
    assert run(capfd, "export", model, "--out", tmp_path / "out")[0] == 0


# --- our own files


def damage(path: Path, place: int, data: bytes) -> None:
    with path.open("r+b") as handle:
        handle.seek(place)
        handle.write(data)


def other_model(folder: Path) -> Path:
    """A finished analysis' plan inputs, of a model with four layers."""
    other = json.loads((folder / "scores.json").read_text())
    other["checkpoint"] = "f" * 64
    (folder / "scores.json").write_text(json.dumps(other))
    return folder


def lie_of_size(size: int) -> Change:
    return change_json("model.json", source_bytes=size)


NAMED = struct.pack("<Q", 13) + b"output.weight"


def lying_header(folder: Path) -> None:
    """header.bin that claims a tensor of 2^50 bytes."""
    found = GGUFFile.open(folder / "header.bin", header_only=True)
    raw = bytearray((folder / "header.bin").read_bytes())
    place = raw.index(NAMED) + len(NAMED) + 4
    assert struct.unpack_from("<QQ", raw, place) == found.tensors["output.weight"].shape
    struct.pack_into("<QQ", raw, place, 1 << 25, 1 << 25)
    (folder / "header.bin").write_bytes(raw)


def replaced(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str, size: int) -> Change:
    return lambda folder: os.truncate(folder / name, size)


def huge(name: str) -> Change:
    return lambda folder: os.truncate(folder / name, 1 << 31)


def piped(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


BAD_RECORDS: dict[str, tuple[Change, tuple[str, ...], tuple[str, ...]]] = {
    "scores of another model": (other_model, ("plan",), ("scores.json", "another model")),
    "scores of another version": (
        change_json("scores.json", format="luq-gguf scores 2"), ("plan",), ("scores.json", "format"),
    ),
    "scores of a billion layers": (change_json("scores.json", layers=10**9), ("plan",), ("scores.json", "layers")),
    "scores of no layers": (change_json("scores.json", layers=0), ("plan",), ("scores.json", "layers")),
    "scores with NaN": (
        lambda folder: (folder / "scores.json").write_text(
            (folder / "scores.json").read_text().replace('"spread":', '"spread": NaN, "x":', 1)
        ),
        ("plan",), ("scores.json",),
    ),
    "scores with text": (change_json("scores.json", samples="many"), ("plan",), ("scores.json", "samples")),
    "scores with fewer rows": (
        change_json("scores.json", entropy={"output_text": []}), ("plan",), ("entrop",),
    ),
    "scores cut": (cut("scores.json", 50), ("plan",), ("scores.json",)),
    "scores too deep": (replaced("scores.json", b"[" * 100_000), ("plan",), ("scores.json",)),
    "scores of 2 GB": (huge("scores.json"), ("plan",), ("scores.json", "2,147,483,648 bytes")),
    "model of 10^18 bytes": (lie_of_size(10**18), ("plan",), ("model.json", "header.bin")),
    "model of other bytes": (lie_of_size(10**6), ("plan",), ("model.json", "header.bin")),
    "model of negative bytes": (lie_of_size(-5), ("plan",), ("model.json", "source_bytes")),
    "model of half bytes": (lie_of_size(0.5), ("plan",), ("model.json", "source_bytes")),  # type: ignore[arg-type]
    "model is a pipe": (piped("model.json"), ("plan",), ("model.json",)),
    "header that lies": (lying_header, ("plan",), ("header.bin", "past its end")),
    "header cut": (cut("header.bin", 500), ("plan",), ("header.bin",)),
    "header is a pipe": (piped("header.bin"), ("plan",), ("header.bin", "no regular file")),
    "header of nothing": (replaced("header.bin", b""), ("plan",), ("header.bin",)),
    "header of 2 GB": (huge("header.bin"), ("plan",), ("header.bin", "2,147,483,648 bytes")),
    "sums cut": (cut("sums.safetensors", 3000), ("imatrix",), ("sums.safetensors",)),
    "sums that lie": (
        lambda folder: damage(folder / "sums.safetensors", 0, b"\xff" * 8), ("imatrix",), ("sums.safetensors",),
    ),
    "sums are a pipe": (piped("sums.safetensors"), ("imatrix",), ("sums.safetensors",)),
    "sums are a reference": (
        lambda folder: shutil.copy(folder / "reference.safetensors", folder / "sums.safetensors"), ("imatrix",),
        ("sums.safetensors", "luq-gguf reference 2"),
    ),
    "manifest cut": (cut("manifest.json", 90), ("verify",), ("manifest.json",)),
    "manifest of another version": (
        change_json("manifest.json", format="luq-gguf manifest 9"), ("verify",), ("manifest.json", "format"),
    ),
    "manifest that climbs out": (
        change_json("manifest.json", files={"../x": {"bytes": 1, "sha256": "a", "changed_ns": 1}}), ("verify",),
        ("manifest.json", "../x"),
    ),
    "manifest is a pipe": (piped("manifest.json"), ("verify",), ("manifest.json",)),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_a_bad_record_is_one_clear_line(copy_of_converted: Path, capfd, case: str) -> None:
    breaking, before, words = BAD_RECORDS[case]
    breaking(copy_of_converted)
    kept = listing(copy_of_converted)
    code = 2 if words == ("entrop",) else 1
    assert_refused(capfd, (*before, copy_of_converted), *words, code=code)
    assert {name for name in listing(copy_of_converted) if not name.startswith(".work")} <= set(kept)


BAD_PLANS: dict[str, tuple[dict[str, Any], str]] = {
    "a type that is none": ({"types": {"output.weight": "Q99"}}, "Q99"),
    "a layer too many": ({"order": [2, 1, 0, 3]}, "3 layers"),
    "a layer twice": ({"order": [2, 1, 1]}, "3 layers"),
    "a low layer of none": ({"low_layers": [7]}, "low layers"),
    "a negative size": ({"size_bytes": -1}, "size_bytes"),
    "a billion layers": ({"layers": 10**9}, "layers"),
    "a list as types": ({"types": []}, "types"),
    "more than there is": ({"more": 1}, "more"),
}


@pytest.mark.parametrize("case", BAD_PLANS)
@pytest.mark.parametrize("command", ["verify", "quantize"])
def test_an_edited_plan_is_one_clear_line(copy_of_converted: Path, capfd, case: str, command: str) -> None:
    changes, word = BAD_PLANS[case]
    change_json("plan.json", **changes)(copy_of_converted)
    plan, imatrix = copy_of_converted / "plan.json", copy_of_converted / "imatrix.gguf"
    model = next(copy_of_converted.glob("*LUQ*.gguf"))
    more = ("--imatrix", imatrix, "--out", copy_of_converted / "new.gguf") if command == "quantize" else ()
    assert_refused(capfd, (command, model, "--plan", plan, *more), "plan.json", word)
    assert not (copy_of_converted / "new.gguf").exists()


def test_a_plan_of_another_model_is_refused(copy_of_converted: Path, tmp_path: Path, capfd) -> None:
    larger = build_pico(tmp_path / "larger", layers=4)
    assert run(capfd, "export", larger, "--out", tmp_path / "export")[0] == 0
    source = next((tmp_path / "export").glob("larger-*.gguf"))
    plan, imatrix = copy_of_converted / "plan.json", copy_of_converted / "imatrix.gguf"
    arguments = ("quantize", source, "--plan", plan, "--imatrix", imatrix, "--out", tmp_path / "new.gguf")
    assert_refused(capfd, arguments, "plan.json is of another model", "blk.3.")
    assert not (tmp_path / "new.gguf").exists()
    code, out, _ = run(capfd, "verify", source, "--plan", plan)
    assert (code, "blk.3.attn_q.weight is not in the plan" in out) == (1, True)


def test_parts_and_importance_of_another_checkpoint_are_not_used(
    pico_checkpoint: Path, copy_of_converted: Path, tmp_path: Path, capfd
) -> None:
    """A work folder in which every part, and the analysis, is another model's under the right name."""
    narrow = tmp_path / "narrow"
    shutil.copytree(copy_of_converted, narrow)
    parts = sorted((narrow / ".work" / "parts").glob("*.gguf"))
    shapes = {name: shape for name, shape in pico_shapes(3, tied=False).items() if name.startswith("model.layers.0")}
    for part in parts:
        write_imatrix(part, shapes)
    for name in ("manifest.json", "plan.json"):
        (narrow / name).unlink()
    model = next(narrow.glob("*LUQ*.gguf"))
    model.unlink()
    arguments = ("convert", pico_checkpoint, "--out", narrow, "--low-layers", 1, *QUICK)
    assert_refused(capfd, arguments, "part")
    assert not model.exists()
    analysis = next((narrow / ".work").glob("analysis-*"))
    change_json("scores.json", checkpoint="f" * 64)(analysis)
    assert_refused(capfd, arguments, analysis.name, "another checkpoint")


def bad_gguf(change: Callable[[bytearray], object]) -> Change:
    def rewrite(path: Path) -> None:
        data = bytearray(path.read_bytes())
        change(data)
        path.write_bytes(data)

    return rewrite


BAD_MODELS: dict[str, Change] = {
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "cut in its header": lambda path: os.truncate(path, 1000),
    "nothing": lambda path: os.truncate(path, 0),
    "more tensors than bytes": bad_gguf(lambda data: struct.pack_into("<Q", data, 8, 1 << 60)),
    "more keys than bytes": bad_gguf(lambda data: struct.pack_into("<Q", data, 16, 1 << 60)),
    "a key without end": bad_gguf(lambda data: struct.pack_into("<Q", data, 24, 1 << 62)),
    "another version": bad_gguf(lambda data: struct.pack_into("<I", data, 4, 77)),
    "not a GGUF": lambda path: path.write_bytes(b"GGML" + bytes(5000)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("command", ["ask", "verify", "bundle", "unbundle", "quantize", "bench"])
@pytest.mark.parametrize("case", BAD_MODELS)
def test_a_bad_gguf_is_one_clear_line(copy_of_converted: Path, tmp_path: Path, capfd, case: str, command: str) -> None:
    model, mmproj = next(copy_of_converted.glob("*LUQ*.gguf")), next(copy_of_converted.glob("mmproj*.gguf"))
    BAD_MODELS[case](model)
    plan, imatrix = copy_of_converted / "plan.json", copy_of_converted / "imatrix.gguf"
    arguments: dict[str, tuple[object, ...]] = {
        "ask": (model, "What?", "--threads", 1),
        "verify": (model, "--plan", plan),
        "bundle": (model, mmproj, "--out", tmp_path / "new.gguf"),
        "unbundle": (model, "--out", tmp_path / "apart"),
        "quantize": (model, "--plan", plan, "--imatrix", imatrix, "--out", tmp_path / "new.gguf"),
        "bench": (model, "--rounds", 1),
    }
    assert_refused(capfd, (command, *arguments[command]), model.name)
    assert_nothing_made(tmp_path / "apart")
    assert not (tmp_path / "new.gguf").exists()


@pytest.mark.parametrize("size", [-1, -500, -100_000])
def test_a_bundle_cut_short_is_one_clear_line(copy_of_converted: Path, tmp_path: Path, capfd, size: int) -> None:
    model, mmproj = next(copy_of_converted.glob("*LUQ*.gguf")), next(copy_of_converted.glob("mmproj*.gguf"))
    whole = tmp_path / "whole.gguf"
    assert run(capfd, "bundle", model, mmproj, "--out", whole)[0] == 0
    os.truncate(whole, whole.stat().st_size + size)
    assert_refused(capfd, ("unbundle", whole, "--out", tmp_path / "apart"), "whole.gguf", "cut")
    assert_nothing_made(tmp_path / "apart")


@pytest.mark.parametrize(
    ("key", "value"),
    [("clip.vision.patch_size", 0), ("clip.vision.patch_size", 1 << 31), ("clip.vision.patch_size", 200)],
)
def test_a_vision_part_with_absurd_patches_is_refused(copy_of_converted: Path, capfd, key: str, value: int) -> None:
    model, mmproj = next(copy_of_converted.glob("*LUQ*.gguf")), next(copy_of_converted.glob("mmproj*.gguf"))
    data = bytearray(mmproj.read_bytes())
    struct.pack_into("<I", data, data.index(key.encode()) + len(key) + 4, value)
    mmproj.write_bytes(data)
    assert_refused(capfd, ("ask", model, "What?", "--mmproj", mmproj, "--threads", 1), mmproj.name, "patch_size")


@pytest.mark.parametrize(
    "template",
    ["{% for i in range(90000) %}" * 4 + "{% endfor %}" * 4, "{{ 'a' * 10**10 }}", "{{ ''.__class__.__mro__ }}"],
)
def test_a_template_in_a_gguf_has_limits_too(
    pico_checkpoint: Path, tmp_path: Path, capfd, monkeypatch, template
) -> None:
    monkeypatch.setattr("luq_gguf.chat.SECONDS", 1.0)
    model = Path(shutil.copytree(pico_checkpoint, tmp_path / "pico"))
    (model / "chat_template.json").unlink()
    change_json("tokenizer_config.json", chat_template=template)(model)
    assert run(capfd, "export", model, "--out", tmp_path / "out")[0] == 0
    text = next((tmp_path / "out").glob("pico-*.gguf"))
    if "__mro__" in template:
        code, _, err = run(capfd, "ask", text, "What?", "--threads", 1)
        assert (code, "Traceback" in err) == (0, False) or "chat template" in err
        return
    assert_refused(capfd, ("ask", text, "What?", "--threads", 1), "chat template")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"hidden_size": 1 << 40}, "hidden_size"),
        ({"vocab_size": 1 << 40}, "vocab_size"),
        ({"num_hidden_layers": 512, "hidden_size": 1 << 18, "intermediate_size": 1 << 18, "num_attention_heads": 4096,
          "num_key_value_heads": 4096,
          "vision_config__out_hidden_size": 1 << 18}, "bytes"),
    ],
)  # fmt: skip
def test_sizes_of_an_absurd_config_are_refused(pico_checkpoint: Path, tmp_path: Path, capfd, changes, word) -> None:
    (tmp_path / "config.json").write_text((pico_checkpoint / "config.json").read_text())
    change_json("config.json", **changes)(tmp_path)
    assert_refused(capfd, ("plan", tmp_path), "config.json", word)


def test_names_are_escaped_in_one_line(tmp_path: Path, capfd) -> None:
    model = build_pico(tmp_path / "bad\n\x1b[2Jname")
    (model / "model.safetensors").unlink()
    code, _, err = run(capfd, "convert", model, "--out", tmp_path / "out", *FEW)
    assert code == 1
    assert err.strip().isprintable()
