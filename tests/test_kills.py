"""kill -9 at thirty random moments: nothing half-written, and the next run ends in the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
