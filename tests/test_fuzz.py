"""A few damaged files for every reader of tests/fuzz, and the cases that long runs of it have found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luq_gguf.imatrix import Sums, read_sums, write_sums
from tests.fuzz.fuzz_readers import Bench
from tests.fuzz.readers import READERS, Reader


@pytest.fixture(scope="module", params=READERS)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    reader: Reader = READERS[request.param]
    yield Bench(reader, tmp_path_factory.mktemp(request.param))
    renderer = getattr(reader.read, "renderer", None)
    if renderer is not None:
        renderer.close()


def test_sound_files_are_read(bench: Bench) -> None:
    if bench.alone:
        for name, content in bench.sound.items():
            (bench.folder / name).write_bytes(content)
            bench.reader.read(bench.folder)
            (bench.folder / name).unlink()
    else:
        bench.reader.read(bench.folder)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=st.integers(0, 1 << 40))
def test_damaged_files_are_read_or_refused(bench: Bench, case: int) -> None:
    kind, what = bench.run("default", 0, case)
    assert kind in {"accepted", "refused"}, f"{what} (case {case})"


def test_names_with_digits_of_other_scripts_are_sorted_too(tmp_path: Path) -> None:
    """str.isdigit holds for a superscript two, which int refuses."""
    rows = {kind: np.ones(4) for kind in ("image", "multimodal_text", "text")}
    names = ("blk.\u00b2.attn_q.weight", "blk.\u0663.attn_q.weight", f"blk.{'9' * 5000}.attn_q.weight")
    write_sums(tmp_path / "s", Sums(dict.fromkeys(names, rows), dict.fromkeys(names, dict.fromkeys(rows, 3)), "d"))
    assert set(read_sums(tmp_path / "s").squares) == set(names)
