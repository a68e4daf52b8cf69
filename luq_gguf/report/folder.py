"""A finished conversion's folder -> everything that its report is made of.

Takes the folder alone, gives its validated records and the header of its text model. Records are held against the
manifest's hashes first, so that no page tells of files that the folder does not hold.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from luq_gguf.artifacts import LayerScores, Plan, Record, RecordT, read_record, sha256_of
from luq_gguf.bench_record import BenchRecord
from luq_gguf.errors import ArtifactError, LuqError
from luq_gguf.frontier import FRONTIER, Frontier, FrontierPoint, better_preset
from luq_gguf.gguf_file import GGUFFile, GGUFTensor
from luq_gguf.imatrix import count_floored
from luq_gguf.importance import ImportanceMatrix, read_importance
from luq_gguf.job import IMATRIX, MANIFEST, PLAN, QUALITY, SCORES, Settings
from luq_gguf.judging import Quality
from luq_gguf.manifest import Manifest
from luq_gguf.planning import weights_to_quantize
from luq_gguf.result_names import ModelFiles
from luq_gguf.showcase import SHOWCASE, Showcase
from luq_gguf.speed_record import SPEED, SpeedRecord

BENCHES, MOST_BENCHES = "bench*.json", 8
"""Records of `luq-gguf bench --json` that lie in the folder."""
CONVERT = "convert the model again"
PLAIN = re.compile(r"[A-Za-z0-9._-]{1,255}")
"""Names stand in commands that people copy."""


@dataclass(frozen=True)
class Coverage:
    """How much of what is quantized the importance matrix knows: weights, and channels that stand at the floor."""

    weights: int
    covered: int
    floored: int
    channels: int


@dataclass(frozen=True)
class Finished:
    """The records of a finished conversion; what was not measured is None."""

    folder: Path
    manifest: Manifest
    plan: Plan
    scores: LayerScores
    quality: Quality | None
    showcase: Showcase | None
    speed: SpeedRecord | None
    frontier: Frontier | None
    benches: dict[str, BenchRecord]
    text: GGUFFile
    importance: ImportanceMatrix
    mmproj: str | None
    bundle: str | None

    @property
    def model(self) -> str:
        """The text model's file name."""
        return self.text.path.name

    @property
    def records(self) -> dict[str, Any]:
        """Every record as plain JSON values, by its file's name."""
        found: dict[str, Record | None] = {
            MANIFEST: self.manifest, PLAN: self.plan, SCORES: self.scores, QUALITY: self.quality,
            SHOWCASE: self.showcase, SPEED: self.speed, FRONTIER: self.frontier,
        }  # fmt: skip
        return {name: record.model_dump(mode="json") for name, record in found.items() if record is not None}

    @cached_property
    def coverage(self) -> Coverage:
        """What the importance matrix covers."""
        wanted = weights_to_quantize(self.plan)
        floored, channels = count_floored(self.importance)
        return Coverage(len(wanted), sum(name in self.importance.weights for name in wanted), floored, channels)

    @cached_property
    def better(self) -> FrontierPoint | None:
        """A preset of llama.cpp's of no more bytes that was measured to diverge less."""
        if self.quality is None:
            return None
        return better_preset(self.folder, self.manifest.checkpoint, self.plan.size_bytes, self.quality)

    @property
    def matrices(self) -> list[GGUFTensor]:
        """The tensors that are no vectors, in file order."""
        return [tensor for tensor in self.text.tensors.values() if len(tensor.shape) > 1]


def read_finished(folder: Path) -> Finished:
    """Everything that a report of a folder is made of.

    Raises ArtifactError where no conversion was finished there, a record or file is missing, or not as it was left;
    GGUFError where the text model's header is broken.
    """
    manifest = _manifest_of(folder)
    models = ModelFiles.among(manifest.files)
    if models.text is None:
        raise ArtifactError(f"{folder / MANIFEST} names no text model", path=folder / MANIFEST, hint=CONVERT)
    for name in (models.text, models.bundle):
        if name is not None:
            _require_size(folder, manifest, name)
    text, plan = GGUFFile.open(folder / models.text), _record(folder, manifest, PLAN, Plan)
    if text.tensors.keys() != plan.types.keys() or len(manifest.layer_bytes) != plan.layers:
        raise ArtifactError(f"{folder / PLAN} is not the plan of {models.text}", path=folder / PLAN, hint=CONVERT)
    _require_hash(folder, manifest, IMATRIX)
    found = Finished(
        folder, manifest, plan, _scores(folder, manifest, plan),
        quality=_optional(folder, manifest, QUALITY, Quality), showcase=_optional(folder, manifest, SHOWCASE, Showcase),
        speed=_optional(folder, manifest, SPEED, SpeedRecord), frontier=_frontier(folder, manifest),
        benches=_benches(folder, manifest.files[models.text].sha256), text=text,
        importance=read_importance(folder / IMATRIX),
        mmproj=models.mmproj,
        bundle=models.bundle,
    )  # fmt: skip
    return found if found.speed is not None else _with_forecast(found)


def _manifest_of(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not path.exists():
        raise ArtifactError(
            f"{folder} holds no {MANIFEST}: no conversion was finished there", path=path,
            hint="give the folder of a finished `luq-gguf convert`",
        )  # fmt: skip
    manifest = read_record(path, Manifest)
    for name in (manifest.name, *manifest.files):
        if not PLAIN.fullmatch(name):
            raise ArtifactError(f"{path} has a name that this tool does not give: {name!r}", path=path, hint=CONVERT)
    return manifest


def _require_size(folder: Path, manifest: Manifest, name: str) -> None:
    path = folder / name
    if not path.is_file():
        raise ArtifactError(f"{path} is missing", path=path, hint=CONVERT)
    if path.stat().st_size != manifest.files[name].bytes:
        raise ArtifactError(f"{path} is not the file that {MANIFEST} names", path=path, hint=CONVERT)


def _require_hash(folder: Path, manifest: Manifest, name: str) -> None:
    if name not in manifest.files:
        raise ArtifactError(f"{folder / MANIFEST} names no {name}", path=folder / MANIFEST, hint=CONVERT)
    _require_size(folder, manifest, name)
    if sha256_of(folder / name) != manifest.files[name].sha256:
        raise ArtifactError(f"{folder / name} has changed since the conversion", path=folder / name, hint=CONVERT)


def _record(folder: Path, manifest: Manifest, name: str, kind: type[RecordT]) -> RecordT:
    _require_hash(folder, manifest, name)
    return read_record(folder / name, kind)


def _optional(folder: Path, manifest: Manifest, name: str, kind: type[RecordT]) -> RecordT | None:
    return _record(folder, manifest, name, kind) if name in manifest.files else None


def _scores(folder: Path, manifest: Manifest, plan: Plan) -> LayerScores:
    scores = _record(folder, manifest, SCORES, LayerScores)
    if scores.layers != plan.layers or any(len(rows) != plan.layers for rows in scores.entropy.values()):
        raise ArtifactError(f"{folder / SCORES} is of another model", path=folder / SCORES, hint=CONVERT)
    return scores


def _frontier(folder: Path, manifest: Manifest) -> Frontier | None:
    """The sweep that lies beside it, where it is of the same model."""
    if not (folder / FRONTIER).is_file():
        return None
    frontier = read_record(folder / FRONTIER, Frontier)
    return frontier if frontier.checkpoint == manifest.checkpoint and frontier.points else None


def _benches(folder: Path, sha256: str) -> dict[str, BenchRecord]:
    """The benchmarks in the folder that measured this very file."""
    found = {path.name: read_record(path, BenchRecord) for path in sorted(folder.glob(BENCHES))[:MOST_BENCHES]}
    return {name: record for name, record in found.items() if any(file.sha256 == sha256 for file in record.files)}


def _with_forecast(found: Finished) -> Finished:
    """With the speed that is predicted for this CPU, where it was profiled since the conversion."""
    from luq_gguf.choice import speed_rule
    from luq_gguf.layout import kept_layout

    rule = speed_rule(Settings())
    if rule is None:
        return found
    wanted = Settings(low_type="IQ1_M", high_type=found.plan.high_type)
    try:
        _, layout = kept_layout(found.folder, wanted)
        return replace(found, speed=SpeedRecord.of(rule.forecast(layout.specs, found.plan)))
    except LuqError:  # a folder without what planning needs, or types that the profile does not have
        return found
