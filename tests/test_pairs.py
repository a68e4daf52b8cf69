"""Text models and vision parts that do not belong together: refused by kind, doubted by name, in every command."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from luq_gguf.errors import GGUFError
from luq_gguf.gguf_file import GGUFFile
from luq_gguf.projectors import doubt_pair
from tests.exported import export_both
from tests.families_under_test import SEEING
from tests.hostile import assert_refused, run
from tests.picos import build_family

PART = Path("mmproj.gguf")


def text(architecture: str = "qwen2vl", **names: str) -> dict[str, str]:
    return {"general.architecture": architecture} | {f"general.{key}": name for key, name in names.items()}


def vision(kind: str = "qwen2.5vl_merger", **names: str) -> dict[str, str]:
    return {"general.architecture": "clip", "clip.projector_type": kind} | text("clip", **names)


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("qwen2vl", "qwen3vl_merger"), ("qwen3vl", "qwen2.5vl_merger"), ("llama", "qwen2vl_merger"),
        ("qwen2", "gemma3"), ("gemma3", "qwen2.5vl_merger"),
    ],
)  # fmt: skip
def test_a_kind_of_another_architecture_is_refused(architecture: str, kind: str) -> None:
    with pytest.raises(GGUFError, match=rf"mmproj\.gguf is the vision part of a .* model, not of {architecture}"):
        doubt_pair(text(architecture), vision(kind), PART)


@pytest.mark.parametrize(("architecture", "kind"), [("llama", "mlp"), ("qwen2", "mlp"), ("qwen2vl", "of the future")])
def test_kinds_that_go_with_many_models(architecture: str, kind: str) -> None:
    assert doubt_pair(text(architecture), vision(kind), PART) is None


def test_names_are_compared_without_sizes() -> None:
    one, other = {"basename": "Qwen2-VL", "name": "Qwen2 VL 7B"}, {"basename": "Qwen2.5-VL", "name": "Qwen2.5 VL 7B"}
    assert doubt_pair(text(**one), vision(**one), PART) is None
    assert doubt_pair(text(basename="A", name="A 7B"), vision(basename="A", name="A 3B"), PART) is None
    assert doubt_pair(text(), vision(**other), PART) is None
    found = doubt_pair(text(**one), vision(**other), PART)
    assert found is not None
    assert found.startswith("mmproj.gguf is the vision part of Qwen2.5-VL, the text model is Qwen2-VL")


@pytest.mark.parametrize("family", SEEING)
def test_every_familys_own_files_are_a_pair(family: str, tmp_path: Path) -> None:
    model, mmproj = export_both(build_family(tmp_path / "Pico-7B-Instruct", family), tmp_path)
    assert doubt_pair(GGUFFile.open(model).metadata, GGUFFile.open(mmproj).metadata, mmproj) is None


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, the vision part of another one of the same kind and width, that of another family, and an image."""
    folder = tmp_path_factory.mktemp("pairs")
    paths = {"image": folder / "image.png"}
    Image.new("RGB", (112, 112), "teal").save(paths["image"])
    for name, family in (("One-VL", "qwen2.5-vl"), ("Other-VL", "qwen2.5-vl"), ("Gemma", "gemma-3")):
        target = folder / name
        target.mkdir()
        model, mmproj = export_both(build_family(target / f"{name}-7B-Instruct", family), target)
        paths |= {name: model, f"{name} mmproj": mmproj}
    return paths


def commands(strangers: dict[str, Path], mmproj: str) -> dict[str, tuple[object, ...]]:
    model, part, image = strangers["One-VL"], strangers[mmproj], strangers["image"]
    sight = ("--mmproj", part, "--image", image, "--threads", 1)
    return {
        "ask": ("ask", model, "What is this?", *sight, "--max-tokens", 1),
        "bench": ("bench", model, *sight, "--prompt", 4, "--generate", 1, "--repeat", 1),
        "bundle": ("bundle", model, part, "--out", model.parent / f"{mmproj}-bundle.gguf"),
    }


@pytest.mark.parametrize("command", ["ask", "bench", "bundle"])
def test_another_familys_vision_part_is_refused(strangers: dict[str, Path], command: str, capfd) -> None:
    arguments = commands(strangers, "Gemma mmproj")[command]
    assert_refused(capfd, arguments, "is the vision part of a gemma3 model, not of qwen2vl")


@pytest.mark.parametrize("command", ["ask", "bench"])
def test_another_models_vision_part_is_doubted(strangers: dict[str, Path], command: str, capfd) -> None:
    words = "is the vision part of Other-VL, the text model is One-VL"
    code, out, err = run(capfd, *commands(strangers, "Other-VL mmproj")[command])
    assert code == 0, err
    assert words in (err if command == "ask" else out)
    code, out, err = run(capfd, *commands(strangers, "One-VL mmproj")[command])
    assert code == 0, err
    assert "is the vision part of" not in out + err
