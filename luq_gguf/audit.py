"""A finished conversion's folder against its own records: every hash, the plan made again, the model against it.

Takes a folder and gives what differs, a line each. Needs neither the checkpoint nor the samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from luq_gguf.artifacts import Plan, read_record, sha256_of
from luq_gguf.choice import plan_again
from luq_gguf.errors import ArtifactError
from luq_gguf.job import DOCUMENTS, MANIFEST, PLAN, Settings
from luq_gguf.manifest import Manifest
from luq_gguf.progress import Progress, silent
from luq_gguf.result_names import ModelFiles
from luq_gguf.verify import verify_types

PLANNED_BY = ("low_layers", "max_size", "low_type", "high_type", "order", "strict", "seed")
"""The settings that a plan depends on, beside the scores."""


def audit_folder(folder: Path, progress: Progress = silent) -> list[str]:
    """The differences between a folder and its manifest, between its plan and one made again, and of the model to it.

    Raises ArtifactError where there is no manifest, or a record that cannot be read.
    """
    manifest = read_record(folder / MANIFEST, Manifest)
    changed = list(_changed_files(folder, manifest, progress))
    if changed:
        return changed
    plan = read_record(folder / PLAN, Plan)
    differences = []
    if plan_again(folder, _settings_of(folder, manifest)).plan != plan:
        differences.append(f"{PLAN} is not what the scores and settings give")
    if plan.checkpoint != manifest.checkpoint:
        differences.append(f"{PLAN} is of another model than {MANIFEST}")
    models = ModelFiles.among(manifest.files)
    for model in (models.text, models.bundle):  # a bundle begins with the text model
        if model is not None:
            differences += [f"{model}: {line}" for line in verify_types(folder / model, plan)]
    return differences


def _changed_files(folder: Path, manifest: Manifest, progress: Progress) -> Iterator[str]:
    total = sum(record.bytes for record in manifest.files.values())
    done = 0
    for name, record in manifest.files.items():
        progress("check hashes", done, total)
        path = folder / name
        hint = f"; `luq-gguf report {folder}` takes note of what was edited" if name in DOCUMENTS else ""
        if not path.is_file():
            yield f"{name} is missing{hint}"
        elif (size := path.stat().st_size) != record.bytes:
            yield f"{name} has {size:,} bytes, {MANIFEST} says {record.bytes:,}{hint}"
        elif sha256_of(path) != record.sha256:
            yield f"{name} has other bytes than those that {MANIFEST} names{hint}"
        done += record.bytes
    progress("check hashes", total, total)


def _settings_of(folder: Path, manifest: Manifest) -> Settings:
    chosen = {name: value for name, value in manifest.settings.items() if name in PLANNED_BY}
    try:
        return TypeAdapter(Settings).validate_python(chosen)
    except ValidationError as error:
        raise ArtifactError(
            f"{folder / MANIFEST} has settings that cannot be: {error.errors()[0]['msg']}",
            path=folder / MANIFEST,
            hint="convert the model again",
        ) from error
