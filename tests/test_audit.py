"""A finished folder against its manifest, as `luq-gguf verify DIR` checks it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from luq_gguf.artifacts import sha256_of
from luq_gguf.audit import audit_folder
from luq_gguf.errors import ArtifactError
from luq_gguf.pipeline import Settings, convert
from tests.pico import build_pico
from tests.program import run_program


def edit_json(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def admit(folder: Path, name: str) -> None:
    """Write the hash of a changed file into the manifest, as someone who edits by hand may."""
    manifest = json.loads((folder / "manifest.json").read_text())
    state = (folder / name).stat()
    manifest["files"][name] = {
        "bytes": state.st_size, "sha256": sha256_of(folder / name), "changed_ns": state.st_mtime_ns,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_finished_folder_is_what_its_manifest_says(copy_of_converted: Path) -> None:
    done = run_program("verify", copy_of_converted)
    assert (done.returncode, done.stdout) == (0, f"{copy_of_converted} is what its manifest says\n")


def test_a_model_may_be_called_as_results_are(tmp_path: Path) -> None:
    """Its name stands in those of all its files."""
    checkpoint, out = build_pico(tmp_path / "mmproj-LUQ-bundle-LUQ-base", layers=2), tmp_path / "out"
    settings = Settings(
        calib="shapes", low_type="Q2_K", low_layers=1, samples=10, threads=1, bundle=True, evaluate=False
    )
    made = convert(str(checkpoint), out, settings)
    again = convert(str(checkpoint), out, settings)
    names = {made.model.name, made.bundle and made.bundle.name, made.mmproj and made.mmproj.name}
    assert len(names) == 3
    assert (again.model, again.bundle, again.mmproj) == (made.model, made.bundle, made.mmproj)
    assert audit_folder(out) == []
    assert f"mmproj-{checkpoint.name}" in (out / "Modelfile").read_text()


def test_a_byte_that_changed_is_found_whatever_the_time_of_change(copy_of_converted: Path) -> None:
    model = next(copy_of_converted.glob("*-LUQ-*.gguf"))
    state = model.stat()
    content = bytearray(model.read_bytes())
    content[-100] ^= 1
    model.write_bytes(content)
    os.utime(model, ns=(state.st_atime_ns, state.st_mtime_ns))
    done = run_program("verify", copy_of_converted)
    assert (done.returncode, done.stdout) == (
        1, f"{model.name} has other bytes than those that manifest.json names\n",
    )  # fmt: skip


def test_every_missing_and_cut_file_is_listed(copy_of_converted: Path) -> None:
    (copy_of_converted / "scores.json").unlink()
    header = copy_of_converted / "header.bin"
    header.write_bytes(header.read_bytes()[:-1])
    found = audit_folder(copy_of_converted)
    assert [line.split()[0] for line in found] == ["scores.json", "header.bin"]


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [("plan.json", {"order": [2, 1, 0]}, "plan.json is not what the scores and settings give"),
     ("plan.json", {"checkpoint": "0" * 64}, "of another model"),
     ("plan.json", {"size_bytes": 1109345}, "the plan says 1,109,345")],
)  # fmt: skip
def test_an_edited_plan_is_found_even_if_its_hash_was_edited_too(
    copy_of_converted: Path, name: str, change: dict[str, Any], words: str
) -> None:
    edit_json(copy_of_converted / name, change)
    admit(copy_of_converted, name)
    assert words in "\n".join(audit_folder(copy_of_converted))


@pytest.mark.parametrize(
    "change",
    [{"format": "luq-gguf manifest 0"}, {"files": {"../x": {"bytes": 1, "sha256": "", "changed_ns": 0}}},
     {"settings": {"order": "none"}}, {"settings": {"low_layers": "two"}}, {"extra": 1}],
)  # fmt: skip
def test_a_manifest_that_cannot_be_is_one_line(copy_of_converted: Path, change: dict[str, Any]) -> None:
    edit_json(copy_of_converted / "manifest.json", change)
    done = run_program("verify", copy_of_converted)
    assert done.returncode in (1, 2)
    assert len(done.stderr.splitlines()[-1:]) == 1
    assert "Traceback" not in done.stderr
    assert "unexpected" not in done.stderr


def test_what_cannot_be_verified_says_how(tmp_path: Path, copy_of_converted: Path) -> None:
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        audit_folder(tmp_path / "empty")
    refused = run_program("verify", next(copy_of_converted.glob("*-LUQ-*.gguf")))
    assert (refused.returncode, "--plan" in refused.stderr) == (2, True)
