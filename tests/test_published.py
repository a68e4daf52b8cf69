"""Published models from their config.json alone: the numbers they have, and the sizes that the README gives."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import pytest

from luq_gguf.families import KNOWN, find_family
from tests.hostile import run
from tests.published import PUBLISHED, QWEN25_VL_72B, UNUSED

GIB = 1 << 30
ROOT = Path(__file__).resolve().parent.parent


def folder_of(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(PUBLISHED[name][0]))
    return folder


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_its_numbers(name: str) -> None:
    """Every number of the checkpoint is in the text model or the mmproj, and none besides."""
    config, text, vision = PUBLISHED[name]
    family = find_family(config)
    assert sum(prod(tensor.shape) for tensor in family.text_tensors()) == text
    needed = sum(prod(tensor.source_shape) for tensor in {t.source: t for t in family.checkpoint_tensors()}.values())
    assert needed == text + vision - UNUSED.get(name, 0)
    names = [tensor.name for tensor in (*family.text_tensors(), *family.vision_tensors())]
    assert len(set(names)) == len(names)
    assert all(row % 256 == 0 for *_, row in (t.shape for t in family.text_tensors() if len(t.shape) > 1)) == (
        name != "Qwen2.5-VL-72B"
    )


def test_every_family_with_vision_is_among_them() -> None:
    seen = {config["architectures"][0] for config, _, _ in PUBLISHED.values()}
    assert seen == {name for name in KNOWN if name.endswith("ForConditionalGeneration")}


def readme_sizes() -> dict[str, list[float]]:
    """The README's table: GiB with no, a quarter, 3/7, half and all of the layers low."""
    lines = (ROOT / "README.md").read_text().splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("| model | layers |"))
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[name] = [float(cell) for cell in cells]
    return rows


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_readme_gives_the_sizes_that_plan_gives(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capfd, "plan", folder_of(tmp_path, name), "--json")
    assert code == 0, err
    table = json.loads(out)
    layers, sizes = table["layers"], table["sizes"]
    counts = [0, round(layers / 4), round(3 * layers / 7), round(layers / 2), layers]
    expected = [layers, round(table["f16_size_bytes"] / GIB, 2), *(round(sizes[count] / GIB, 2) for count in counts)]
    assert readme_sizes()[name] == expected


def test_rows_that_fill_no_block_are_said_in_the_table(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert QWEN25_VL_72B["intermediate_size"] % 256
    code, out, err = run(capfd, "plan", folder_of(tmp_path, "Qwen2.5-VL-72B"))
    assert code == 0, err
    assert "ffn_down: rows of 29,568 do not fill the blocks of these types" in out
    assert "Q5_0 or Q8_0 in high layers, IQ4_NL in low ones" in out
    code, out, err = run(capfd, "plan", folder_of(tmp_path, "Qwen2.5-VL-7B"))
    assert code == 0, err
    assert "do not fill" not in out
