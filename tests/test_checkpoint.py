"""Checkpoints are read as the safetensors library reads them, and every kind of broken folder is named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from luq_gguf.checkpoint import Checkpoint, resolve_model
from luq_gguf.errors import CheckpointError, LuqError, TensorError
from luq_gguf.safetensors_index import read_header
from tests.pico import build_pico
from tests.pico_files import encode, write_safetensors

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path, pico_checkpoint: Path) -> Path:
    """A copy of the pico checkpoint that a test may break."""
    return Path(shutil.copytree(pico_checkpoint, tmp_path / "model"))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_pico(tmp_path_factory.mktemp("sharded") / "model", shards=3)


@pytest.mark.parametrize(("dtype", "shards"), [("bf16", 3), ("f16", 1), ("f32", 2)])
def test_tensors_are_those_that_safetensors_reads(tmp_path: Path, dtype: str, shards: int) -> None:
    checkpoint = Checkpoint.open(build_pico(tmp_path / "model", dtype=dtype, shards=shards, layers=1))
    names = set()
    for path in sorted((tmp_path / "model").glob("*.safetensors")):
        with safe_open(path, "pt") as reader:
            for name in reader.keys():  # noqa: SIM118
                names.add(name)
                expected = reader.get_tensor(name)
                bits = torch.uint32 if dtype == "f32" else torch.uint16
                stored = checkpoint.read(name)
                np.testing.assert_array_equal(stored.view(f"u{stored.itemsize}"), expected.view(bits).numpy())
                wide = checkpoint.read_float32(name)
                assert wide.dtype == np.float32
                np.testing.assert_array_equal(wide, expected.float().numpy())
                assert checkpoint.tensors[name].dtype == dtype.upper()
    assert names == checkpoint.tensors.keys()


def test_rows_are_those_of_the_whole(pico_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(pico_checkpoint)
    rows = np.array([511, 0, 7, 7])
    table = checkpoint.read_float32("model.embed_tokens.weight")
    np.testing.assert_array_equal(checkpoint.read_rows("model.embed_tokens.weight", rows), table[rows])
    with pytest.raises(TensorError, match="512 rows"):
        checkpoint.read_rows("model.embed_tokens.weight", np.array([512]))
    with pytest.raises(TensorError, match="matrix"):
        checkpoint.read_rows("model.norm.weight", rows)


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_name(folder: Path, dtype: str, value: float) -> None:
    values = np.ones((4, 8), dtype=np.float32)
    values[2, 3] = value
    write_safetensors(folder / "model.safetensors", {"bad": encode(values, dtype)}, dtype)
    checkpoint = Checkpoint.open(folder)
    with pytest.raises(TensorError, match="bad holds 1 values") as caught:
        checkpoint.read_float32("bad")
    assert caught.value.tensor == "bad"
    assert checkpoint.read_rows("bad", np.array([1, 3])).tolist() == [[1.0] * 8] * 2
    with pytest.raises(TensorError, match="bad holds 1 values"):
        checkpoint.read_rows("bad", np.array([2]))


def test_digest_follows_the_content_and_not_the_place(pico_checkpoint: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(pico_checkpoint, tmp_path / "moved"))
    digest = Checkpoint.open(pico_checkpoint).digest
    assert Checkpoint.open(moved).digest == digest
    os.utime(moved / "model.safetensors", (0, 0))
    assert Checkpoint.open(moved).digest == digest
    (moved / "tokenizer_config.json").write_text("{}")
    assert Checkpoint.open(moved).digest != digest
    trained_on = build_pico(tmp_path / "other", seed=7)
    assert Checkpoint.open(trained_on).digest != digest


def test_tensor_of_another_type_is_known_but_not_read(folder: Path) -> None:
    tensors = {"ids": torch.arange(4), "weight": torch.ones(2)}
    save_file(tensors, folder / "model.safetensors")
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.tensors["ids"].dtype == "I64"
    with pytest.raises(TensorError, match="ids is stored as I64"):
        checkpoint.read("ids")
    with pytest.raises(TensorError, match="nothing is missing"):
        checkpoint.read("nothing")


def truncate(path: Path, size: int) -> None:
    with path.open("r+b") as handle:
        handle.truncate(size)


def rewrite_header(path: Path, change: Callable[[dict], None]) -> None:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def set_entry(key: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        rewrite_header(folder / "model.safetensors", lambda header: header["model.norm.weight"].update({key: value}))

    return change


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def link_outside(folder: Path) -> None:
    shutil.move(folder / "model.safetensors", folder.parent / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(folder.parent / "elsewhere.safetensors")


def numbered_without_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "config cut": (lambda folder: truncate(folder / "config.json", 100), "config.json is no valid JSON"),
    "config a list": (lambda folder: (folder / "config.json").write_text("[]"), "holds no JSON object"),
    "config not text": (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), "no valid JSON"),
    "config too deep": (lambda folder: (folder / "config.json").write_text("[" * 100_000), "no valid JSON"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "has no model"),
    "only pickle": (only_pickle, "pytorch_model.bin.*never loaded.*convert it to safetensors"),
    "empty file": (lambda folder: truncate(folder / "model.safetensors", 0), "cut short"),
    "header cut": (lambda folder: truncate(folder / "model.safetensors", 500), "cut short"),
    "data cut": (lambda folder: truncate(folder / "model.safetensors", 100_000), "cut short: it needs .* bytes"),
    "one byte cut": (
        lambda folder: truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 1),
        "cut short",
    ),
    "not safetensors": (lambda folder: (folder / "model.safetensors").write_bytes(b"GGUF" * 100), "no safetensors"),
    "header no JSON": (
        lambda folder: (folder / "model.safetensors").write_bytes((16).to_bytes(8, "little") + b"x" * 64),
        "broken header",
    ),
    "header a list": (
        lambda folder: (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]"),
        "broken header",
    ),
    "no tensors": (
        lambda folder: (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}"),
        "holds no tensors",
    ),
    "name twice": (
        lambda folder: (folder / "model.safetensors").write_bytes((13).to_bytes(8, "little") + b'{"a":1,"a":2}'),
        "stands twice",
    ),
    "negative size": (set_entry("shape", [-256]), "model.norm.weight has a broken entry"),
    "huge size": (set_entry("shape", [1 << 60]), "model.norm.weight has a broken entry"),
    "size a text": (set_entry("shape", "256"), "model.norm.weight has a broken entry"),
    "three offsets": (set_entry("data_offsets", [0, 1, 2]), "model.norm.weight has a broken entry"),
    "wrong size": (set_entry("shape", [255]), r"512 bytes do not fit shape \(255,\) of BF16"),
    "offsets swapped": (set_entry("data_offsets", [600, 88]), "model.norm.weight"),
    "overlap": (set_entry("data_offsets", [0, 512]), "overlap"),
    "no type": (set_entry("dtype", None), "model.norm.weight has a broken entry"),
    "link outside": (link_outside, "is a link to .*outside"),
    "numbered, one missing": (numbered_without_index, "shard model-00002-of-00002.safetensors is missing"),
    "index names a file that is not there": (
        lambda folder: (folder / INDEX).write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}'),
        "shard model-00001-of-00001.safetensors is missing",
    ),
    "index without map": (lambda folder: (folder / INDEX).write_text("{}"), "has no weight_map"),
    "index names a tensor that is not there": (
        lambda folder: (folder / INDEX).write_text('{"weight_map": {"no.such": "model.safetensors"}}'),
        "tensor no.such is missing",
    ),
} | {
    f"index names {name!r}": (
        lambda folder, name=name: (folder / INDEX).write_text(json.dumps({"weight_map": {"a": name}})),
        "is not a safetensors file of the folder itself",
    )
    for name in (
        "../x.safetensors",
        "/etc/x.safetensors",
        "sub/x.safetensors",
        "..\\x.safetensors",
        "x.bin",
        "..",
        "",
        7,
        "a\0.safetensors",
    )
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_refused_in_one_line(folder: Path, case: str) -> None:
    breaking, message = BROKEN[case]
    breaking(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        Checkpoint.open(folder)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("victim", range(3))
def test_a_missing_shard_is_named(sharded: Path, tmp_path: Path, victim: int) -> None:
    folder = Path(shutil.copytree(sharded, tmp_path / "model"))
    shard = sorted(folder.glob("*.safetensors"))[victim]
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        Checkpoint.open(folder)


def test_a_tensor_in_two_shards_is_refused(sharded: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sharded, tmp_path / "model"))
    first, second, _ = sorted(folder.glob("*.safetensors"))
    shutil.copy(first, second)
    (folder / INDEX).unlink()
    with pytest.raises(TensorError, match="in two shards"):
        Checkpoint.open(folder)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_headers_never_raise_anything_else(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "fuzzed.safetensors"
    write_safetensors(path, {"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float32)}, "f32")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    size = path.stat().st_size
    try:
        tensors = read_header(path)
    except LuqError:
        return
    assert all(0 < info.offset <= info.offset + info.nbytes <= size for info in tensors.values())


def test_side_files_stay_inside_the_folder(pico_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(pico_checkpoint)
    assert checkpoint.side_file("tokenizer.json") == pico_checkpoint / "tokenizer.json"
    assert checkpoint.side_file("nothing.json") is None
    assert checkpoint.side_file(f"../{pico_checkpoint.name}/config.json") is None


def test_resolve_takes_a_folder_and_refuses_what_is_neither(pico_checkpoint: Path) -> None:
    assert resolve_model(str(pico_checkpoint)) == pico_checkpoint.resolve()
    for wrong in ("./no/such/folder", "/no/such", "name", "a/b/c", str(pico_checkpoint / "config.json")):
        with pytest.raises(CheckpointError, match="neither a folder nor a hub id"):
            resolve_model(wrong)


def resolve_offline(cache: Path, model: str) -> str:
    code = (
        "import sys\nfrom luq_gguf.checkpoint import Checkpoint, resolve_model\nfrom luq_gguf.errors import LuqError\n"
        "try:\n    print(len(Checkpoint.open(resolve_model(sys.argv[1])).tensors))\n"
        "except LuqError as error:\n    print(type(error).__name__, error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    run = subprocess.run(
        [sys.executable, "-c", code, model], env=environment, capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


def test_hub_id_that_cannot_be_had_is_one_clear_line(tmp_path: Path) -> None:
    answer = resolve_offline(tmp_path, "owner/no-such-model")
    assert answer.startswith("CheckpointError cannot get owner/no-such-model from the hub:")
    assert "\n" not in answer


def test_hub_cache_with_its_links_is_opened(tmp_path: Path, pico_checkpoint: Path) -> None:
    repository, revision = tmp_path / "models--owner--pico", "0" * 40
    snapshot = repository / "snapshots" / revision
    for place in (repository / "refs", repository / "blobs", snapshot):
        place.mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    for path in pico_checkpoint.iterdir():
        shutil.copy(path, repository / "blobs" / f"blob-{path.name}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"blob-{path.name}")
    assert resolve_offline(tmp_path, "owner/pico") == str(len(Checkpoint.open(pico_checkpoint).tensors))


def test_a_change_of_a_shard_is_noticed(tmp_path: Path) -> None:
    folder = build_pico(tmp_path / "pico")
    shard = folder / "model.safetensors"
    before, checked = Checkpoint.open(folder), Checkpoint.open(folder, check_all=True)
    state = shard.stat()
    content = bytearray(shard.read_bytes())
    content[len(content) // 2 + 1001] ^= 4
    shard.write_bytes(content)
    after = Checkpoint.open(folder)
    assert (after.digest, after.fingerprint != before.fingerprint) == (before.digest, True)
    os.utime(shard, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert Checkpoint.open(folder).fingerprint == before.fingerprint
    assert Checkpoint.open(folder, check_all=True).fingerprint != checked.fingerprint


def test_checked_all_a_copy_is_the_same_model(tmp_path: Path, pico_checkpoint: Path) -> None:
    copied = Path(shutil.copytree(pico_checkpoint, tmp_path / "copy", copy_function=shutil.copyfile))
    prints = [Checkpoint.open(folder, check_all=True).fingerprint for folder in (pico_checkpoint, copied)]
    assert prints[0] == prints[1]
    assert Checkpoint.open(copied).digest == Checkpoint.open(pico_checkpoint).digest
