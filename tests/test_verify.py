"""What `verify_types` finds in files that differ from their plan."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Q

from luq_gguf.artifacts import Plan
from luq_gguf.errors import GGUFError
from luq_gguf.gguf_file import GGUFFile, encode_header, raw_value
from luq_gguf.verify import verify_types

TENSORS = [("output.weight", (256, 2), Q.Q6_K), ("blk.0.attn_q.weight", (256, 3), Q.IQ1_M), ("blk.0.norm", (5,), Q.F32)]
METADATA = {"general.architecture": raw_value("qwen2vl")}


def write(path: Path, tensors=TENSORS, data: int = 448 + 192 + 32) -> Path:
    path.write_bytes(encode_header(METADATA, tensors) + b"\0" * data)
    return path


def plan_of(path: Path, **changes) -> Plan:
    given = {
        "checkpoint": "c", "layers": 1, "order_name": "depth", "order": (0,), "low_layers": (0,), "low_type": "IQ1_M",
        "high_type": "Q4_K_M", "types": {name: kind.name for name, _, kind in TENSORS},
        "size_bytes": path.stat().st_size, "high_size_bytes": 1, "f16_size_bytes": 1, "bits_per_weight": 1.0,
    }  # fmt: skip
    return Plan(**(given | changes))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "x.gguf")


def test_a_file_that_is_its_plan(path: Path):
    assert verify_types(path, plan_of(path), header=GGUFFile.open(path)) == []


def test_types_and_names(path: Path):
    types = {"output.weight": "Q4_K", "blk.0.attn_q.weight": "IQ1_M", "blk.0.attn_k.weight": "IQ1_M"}
    assert sorted(verify_types(path, plan_of(path, types=types))) == [
        "blk.0.attn_k.weight is missing",
        "blk.0.norm is not in the plan",
        "output.weight is Q6_K, the plan says Q4_K",
    ]


def test_shapes(path: Path, tmp_path: Path):
    other = write(tmp_path / "other.gguf", [("output.weight", (512, 1), Q.Q6_K), *TENSORS[1:]])
    assert verify_types(path, plan_of(path), header=GGUFFile.open(other)) == [
        "output.weight has the shape (256, 2), the model's is (512, 1)"
    ]


def test_sizes(path: Path):
    size = path.stat().st_size
    found = verify_types(path, plan_of(path, size_bytes=size + 32))
    assert found == [
        f"the text model ends at byte {size:,}, the plan says {size + 32:,}",
        f"the file has {size:,} bytes, the plan says {size + 32:,}",
    ]


def test_a_lost_padding_is_found(path: Path):
    plan = plan_of(path)
    path.write_bytes(path.read_bytes()[:-12])
    assert [line.split(" bytes")[0] for line in verify_types(path, plan)] == [
        f"the file has {plan.size_bytes - 12:,}"
    ]  # fmt: skip


def test_a_gap_between_tensors_is_found(path: Path):
    header = encode_header(METADATA, TENSORS)
    last = header.rindex((640).to_bytes(8, "little"))
    moved = header[:last] + (672).to_bytes(8, "little") + header[last + 8 :]
    path.write_bytes(moved + b"\0" * (448 + 192 + 64))
    plan = plan_of(path)
    start = len(header)
    assert verify_types(path, plan) == [f"blk.0.norm lies at byte {start + 672:,}, expected at {start + 640:,}"]


def test_a_bundle_is_its_text_model(path: Path):
    plan = plan_of(path)
    path.write_bytes(path.read_bytes() + b"more")
    assert verify_types(path, plan) == []


def test_a_cut_file_is_an_error(path: Path):
    plan = plan_of(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(GGUFError, match="past its end"):
        verify_types(path, plan)
