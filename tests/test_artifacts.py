"""Records that refuse what was edited, and files that are whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from luq_gguf import artifacts
from luq_gguf.artifacts import (
    Plan,
    atomic_path,
    read_record,
    remove_stale,
    require_space,
    scratch_folder,
    sha256_of,
    write_json,
    write_record,
)
from luq_gguf.errors import ArtifactError, DiskSpaceError
from tests.program import dead_process

PLAN = Plan(
    checkpoint="abc", layers=2, order_name="depth", order=(1, 0), low_layers=(1,), low_type="Q2_K", high_type="Q4_K_M",
    types={"blk.0.attn_q.weight": "Q4_K", "blk.1.attn_q.weight": "Q2_K"}, size_bytes=10, high_size_bytes=12,
    f16_size_bytes=32, bits_per_weight=3.5, fallbacks={"blk.1.ffn_down.weight": "IQ4_NL"},
)  # fmt: skip


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    write_record(tmp_path / "plan.json", PLAN)
    assert read_record(tmp_path / "plan.json", Plan) == PLAN
    assert json.loads((tmp_path / "plan.json").read_text())["low_layers"] == [1]


@pytest.mark.parametrize(
    ("change", "word"),
    [({"format": "luq-gguf plan 2"}, "format"), ({"size_bytes": "many"}, "size_bytes"), ({"more": 1}, "more"),
     ({"bits_per_weight": float("nan")}, "bits_per_weight"), ({"types": None}, "types")],
)  # fmt: skip
def test_an_edited_record_is_refused(tmp_path: Path, change: dict[str, object], word: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(PLAN.model_dump() | change))
    with pytest.raises(ArtifactError, match=rf"plan\.json is no valid Plan: {word}") as caught:
        read_record(path, Plan)
    assert caught.value.path == path
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_what_is_no_record_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"plan\.json"):
        read_record(tmp_path / "plan.json", Plan)
    with pytest.raises(ArtifactError, match=r"missing\.json"):
        read_record(tmp_path / "missing.json", Plan)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_json(path, {"old": True})

    def fail_halfway() -> None:
        with atomic_path(path) as partial:
            partial.write_text("half")
            assert json.loads(path.read_text()) == {"old": True}
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_halfway()
    assert [found.name for found in path.parent.iterdir()] == ["file"]
    assert json.loads(path.read_text()) == {"old": True}


def test_only_what_dead_processes_left_is_removed(tmp_path: Path) -> None:
    dead = dead_process()
    keep = [f".a.gguf.{os.getpid()}.partial", f".b.gguf.{os.getppid()}.partial", "model.partial", ".mine.partial",
            f"visible.{dead}.partial", f".{dead}.partial.gguf"]  # fmt: skip
    for name in [*keep, f".c.gguf.{dead}.partial"]:
        (tmp_path / name).write_text("x")
    folder = tmp_path / f".header.xyz.{dead}.partial"
    folder.mkdir()
    (folder / "header.gguf").write_text("x")
    remove_stale(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(keep)
    remove_stale(tmp_path / "missing")


def test_a_link_is_removed_but_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    link = tmp_path / f".x.{dead_process()}.partial"
    link.symlink_to(tmp_path / "precious")
    remove_stale(tmp_path)
    assert not link.is_symlink()
    assert (tmp_path / "precious" / "file").exists()


def test_what_lies_below_is_removed_where_asked(tmp_path: Path) -> None:
    elsewhere, work = tmp_path / "elsewhere", tmp_path / "work"
    folders = [elsewhere, work / "judged", work / "analyzing-1" / "deeper", work / f".trial.x.{dead_process()}.partial"]
    left = [folder / f".a.json.{dead_process()}.partial" for folder in folders]
    for path in left:
        path.parent.mkdir(parents=True)
        path.write_text("x")
    (work / "link").symlink_to(elsewhere)
    remove_stale(work)
    assert [path.exists() for path in left] == [True, True, True, False]
    remove_stale(work, below=True)
    assert [path.exists() for path in left] == [True, False, False, False]
    assert (work / "judged").is_dir()


def test_a_killed_process_leaves_only_what_the_next_removes(tmp_path: Path) -> None:
    code = (
        "import os, sys, signal\nfrom pathlib import Path\nfrom luq_gguf.artifacts import atomic_path, scratch_folder\n"
        "folder = Path(sys.argv[1])\n"
        "with scratch_folder(folder, 'work') as scratch, atomic_path(folder / 'model.gguf') as partial:\n"
        "    partial.write_text('half')\n    (scratch / 'file').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    left = [path.name for path in tmp_path.iterdir()]
    assert len(left) == 2
    assert "model.gguf" not in left
    remove_stale(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_scratch_folder_is_gone_afterwards(tmp_path: Path) -> None:
    def fail_halfway() -> None:
        with scratch_folder(tmp_path / "work", "header") as folder:
            (folder / "file").write_text("x")
            remove_stale(tmp_path / "work")
            assert (folder / "file").exists()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_halfway()
    assert not list((tmp_path / "work").iterdir())


def test_room_is_asked_of_the_disk_of_a_folder_to_be(tmp_path: Path, monkeypatch) -> None:
    require_space(tmp_path / "a" / "b", 1, "nothing")
    asked: list[Path] = []

    def usage(path: Path) -> object:
        asked.append(Path(path))
        return type("Usage", (), {"free": 1000})

    monkeypatch.setattr(artifacts.shutil, "disk_usage", usage)
    require_space(tmp_path / "a" / "b", 1000, "all of it")
    with pytest.raises(DiskSpaceError, match=r"a model needs 1,001 bytes in .*, which has 1,000 bytes free") as caught:
        require_space(tmp_path / "a" / "b", 1001, "a model")
    assert (caught.value.needed, caught.value.free) == (1001, 1000)
    assert set(asked) == {tmp_path}


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 100_000)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_two_threads_may_write_the_same_file(tmp_path: Path) -> None:
    """Each under a temporary name of its own; the last one to end stays."""
    both, failed = threading.Barrier(2, timeout=60), list[BaseException]()

    def write(text: str) -> None:
        try:
            with atomic_path(tmp_path / "file") as partial:
                partial.write_text(text)
                both.wait()
                assert partial.read_text() == text
        except BaseException as error:
            failed.append(error)
            both.abort()

    threads = [threading.Thread(target=write, args=(text,)) for text in ("one", "another")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert (tmp_path / "file").read_text() in ("one", "another")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
