"""kill -9 at thirty random moments: nothing half-written, and the next run ends in the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.kill_conversions import difference, require_same
from luq_gguf.imatrix import read_sums, write_sums
from luq_gguf.job import SUMS
from tests.program import Run, result_of

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "kill_conversions.py"


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--no-keep-parts",)])
def test_killed_conversions_go_on(pico_checkpoint: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    found = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--moments", "30", "--model", pico_checkpoint, "--json", found, *options],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(found.read_text())
    assert (result["moments"], result["differences"]) == (30, 0)
    assert sum(result["stages"].values()) == 30
    assert len(result["stages"]) > 2


@pytest.mark.parametrize("share", [1e-7, 0.1])
def test_analyses_are_compared_by_their_largest_sums(converted: Run, copy_of_converted: Path, share: float) -> None:
    original = Path(result_of(converted)["model"]).parent
    assert difference(original, copy_of_converted) == 0
    require_same(copy_of_converted, original, "unharmed")
    sums = read_sums(copy_of_converted / SUMS)
    row = sums.squares["blk.1.ffn_down.weight"]["text"]
    row[row.argmin()] += share * row.max()
    write_sums(copy_of_converted / SUMS, sums)
    assert difference(original, copy_of_converted) == pytest.approx(share, rel=1e-3)
    with pytest.raises(SystemExit, match=f"afterwards these files differ, .* by up to {share:.2g}: sums"):
        require_same(copy_of_converted, original, "afterwards")


def test_any_difference_is_refused(converted: Run, copy_of_converted: Path) -> None:
    original = Path(result_of(converted)["model"]).parent
    sums = read_sums(copy_of_converted / SUMS)
    sums.counts["blk.1.ffn_down.weight"]["text"] += 1
    write_sums(copy_of_converted / SUMS, sums)
    with pytest.raises(SystemExit, match=r"afterwards these files differ, .* by up to inf: sums\.safetensors"):
        require_same(copy_of_converted, original, "afterwards")
    (copy_of_converted / ".work" / ".x.1.partial").touch()
    with pytest.raises(SystemExit, match=r"afterwards these files are left: .*\.x\.1\.partial"):
        require_same(copy_of_converted, original, "afterwards")
