"""One model, one output folder, one set of choices: what every stage of the pipeline is handed.

Also how long each stage took, and the names under which results and reusable work lie.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luq_gguf.artifacts import lock_folder, remove_stale
from luq_gguf.checkpoint import Checkpoint, resolve_model
from luq_gguf.errors import RequestError
from luq_gguf.export import require_tensors, resolve_dtype
from luq_gguf.families import find_family
from luq_gguf.families.base import Dtype, Family
from luq_gguf.images import MIN_IMAGE_TOKENS
from luq_gguf.planning import ORDERS, Budget
from luq_gguf.progress import Progress
from luq_gguf.result_names import mmproj_name
from luq_gguf.speed_budget import AUTO
from luq_gguf.type_names import parse_high_type, parse_low_type

PLAN, SCORES, IMATRIX, MANIFEST = "plan.json", "scores.json", "imatrix.gguf", "manifest.json"
SUMS, REFERENCE, TENSOR_TYPES = "sums.safetensors", "reference.safetensors", "tensor-types.txt"
HEADER, MODEL, QUALITY = "header.bin", "model.json", "quality.json"
REPORT, CARD, MODELFILE, PLOTS = "report.html", "README.md", "Modelfile", ("plot-layers.png", "plot-frontier.png")
DOCUMENTS = (REPORT, CARD, MODELFILE, *PLOTS)
"""What tells people of the results; made from the records, by `report` at any time."""
WORK = ".work"
KEPT = "kept"
"""The empty file in the folder of quantized layers which says that a user wanted them kept."""
SMALL_MODEL_BYTES = 2 * 2**30
"""Of models up to this size the quantized layers are kept unless it is said otherwise."""
MMPROJ_TYPES = ("f16", "bf16", "f32")
COMPUTE_TYPES = ("auto", "bf16", "f32")


@dataclass(frozen=True)
class Settings:
    """What a user may choose; the defaults are the paper's method.

    `max_size` is in bytes of the text GGUF; `min_tps` are generated tokens a second, predicted by the `profile` of a
    CPU (None: this one's), and `low_type` "auto" takes the smallest that slows nothing down; `max_drop` is the share of
    answer tokens, measured on the held-out samples, in which the file may differ from the 16-bit model; `threads` 0
    means all cores; `keep_parts` None keeps the quantized layers of small models, and where an earlier run was told to
    keep them; `work` None means a folder beside the results;
    `check_all` hashes every byte of the checkpoint where times of change cannot be trusted; `imatrix` files, merged,
    take the place of the measured importance matrix; `evaluate` measures the quality of what was made;
    `sequential` measures the importance matrix again along the quantized model.
    """

    low_layers: int | None = None
    max_size: int | None = None
    min_tps: float | None = None
    max_drop: float | None = None
    low_type: str = "IQ1_M"
    high_type: str = "Q4_K_M"
    order: str = "entropy"
    strict: bool = False
    calib: str | Path | None = None
    samples: int | None = None
    skip_bad: bool = False
    image_max_tokens: int | None = None
    alpha: float = 0.5
    seed: int = 0
    compute_type: str = "auto"
    mmproj_type: str = "f16"
    mmproj_layout: str | None = None
    threads: int = 0
    work: Path | None = None
    keep_parts: bool | None = None
    bundle: bool = False
    check_all: bool = False
    imatrix: tuple[Path, ...] = ()
    profile: Path | None = None
    evaluate: bool = True
    sequential: bool = False

    def __post_init__(self) -> None:
        for name, value, least in (
            ("low-layers", self.low_layers, 0), ("samples", self.samples, 1), ("threads", self.threads, 0),
        ):  # fmt: skip
            if value is not None and value < least:
                raise RequestError(f"--{name} is {value}", hint=f"give at least {least}")
        _require_one_of("order", self.order, ORDERS)
        _require_one_of("mmproj type", self.mmproj_type, MMPROJ_TYPES)
        _require_one_of("compute type", self.compute_type, COMPUTE_TYPES)
        if self.low_type.lower() != AUTO:
            parse_low_type(self.low_type)
        if self.min_tps is not None and not 0 < self.min_tps < 1e6:
            raise RequestError(f"--min-tps is {self.min_tps:g}", hint="give tokens a second, above 0")
        if self.sequential and self.imatrix:
            raise RequestError("--sequential measures what --imatrix brings", hint="leave one of them out")
        if self.max_drop is not None and not 0 <= self.max_drop < 1:
            raise RequestError(f"--max-drop is {self.max_drop:.0%}", hint="give a share below 100 %, such as 10%")
        parse_high_type(self.high_type)
        if self.image_max_tokens is not None and self.image_max_tokens < MIN_IMAGE_TOKENS:
            raise RequestError(
                f"--image-max-tokens is {self.image_max_tokens}", hint=f"llama.cpp wants at least {MIN_IMAGE_TOKENS}"
            )
        if not 0 <= self.alpha <= 1:
            raise RequestError(f"alpha is {self.alpha:g}", hint="give a number from 0 to 1")

    @property
    def budget(self) -> Budget:
        """The part of the choices that limits the file."""
        return Budget(self.low_layers, self.max_size)

    @property
    def by_speed(self) -> bool:
        """Whether the plan depends on the speed of this CPU."""
        return self.min_tps is not None or self.low_type.lower() == AUTO

    @property
    def measures_input(self) -> bool:
        """Whether the order needs the entropy of the layers' input too."""
        return self.order == "entropy-input"


def _require_one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise RequestError(f"unknown {what} {value!r}", hint=f"known are {', '.join(known)}")


@dataclass
class Stopwatch:
    """Seconds by stage, in the order in which stages began; time of a stage within another counts once."""

    seconds: dict[str, float] = field(default_factory=dict)
    _within: list[float] = field(default_factory=list)

    @contextlib.contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of the block, less that of the stages measured within it, to a stage."""
        self.seconds.setdefault(stage, 0.0)
        started = time.monotonic()
        self._within.append(0.0)
        try:
            yield
        finally:
            taken = time.monotonic() - started
            own = taken - self._within.pop()
            self.seconds[stage] = round(self.seconds[stage] + own, 3)
            if self._within:
                self._within[-1] += taken


@dataclass(frozen=True)
class Job:
    """What every stage needs; make it with `open_job`."""

    checkpoint: Checkpoint
    family: Family
    out: Path
    settings: Settings
    progress: Progress
    watch: Stopwatch = field(default_factory=Stopwatch)

    @property
    def name(self) -> str:
        """The model's name in file names: its folder's, in harmless characters."""
        return model_name(self.checkpoint.folder)

    @property
    def dtype(self) -> Dtype:
        """The 16-bit type that layers pass through on their way to a quantized one."""
        return resolve_dtype(self.checkpoint, "auto")

    @property
    def work(self) -> Path:
        """Where lies what later runs can reuse."""
        return self.settings.work or self.out / WORK

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Keep other runs out of the folders for the length of the block, and clear away what killed runs left.

        Raises BusyError where another run works there.
        """
        with contextlib.ExitStack() as locks:
            for folder in dict.fromkeys((self.out / WORK, self.work)):
                locks.enter_context(lock_folder(folder))
            remove_stale(self.out)
            remove_stale(self.work, below=True)
            yield

    @property
    def parts(self) -> Path:
        """Quantized layers, each under a name made of everything that its bytes depend on."""
        return self.work / "parts"

    def remember_parts(self) -> None:
        """Leave word that quantized layers are to stay for later runs, where these settings say so."""
        if self.settings.keep_parts:
            self.parts.mkdir(parents=True, exist_ok=True)
            (self.parts / KEPT).touch()

    def keeps_parts(self, high_size_bytes: int) -> bool:
        """Whether quantized layers stay for other budgets: as asked now or before, else where they are small."""
        if self.settings.keep_parts is not None:
            return self.settings.keep_parts
        return high_size_bytes < SMALL_MODEL_BYTES or (self.parts / KEPT).exists()

    def moves_parts(self, high_size_bytes: int) -> bool:
        """Whether quantized layers may go as soon as they are in the result: a measured speed may ask for another."""
        return not self.keeps_parts(high_size_bytes) and self.settings.min_tps is None

    @property
    def mmproj(self) -> Path | None:
        """The vision part's final name; None for a model that takes no images."""
        if self.family.vision is None:
            return None
        return self.out / mmproj_name(self.name, self.settings.mmproj_type)


def open_job(model: str, out: Path, settings: Settings, progress: Progress) -> Job:
    """Find the model and its family; reads headers only, unless all is to be checked.

    Raises CheckpointError with what is wrong.
    """
    checkpoint = Checkpoint.open(resolve_model(model), check_all=settings.check_all)
    family = find_family(checkpoint.config, checkpoint)
    family.choose_layout(settings.mmproj_layout)
    require_tensors(checkpoint, family)
    if settings.bundle and family.vision is None:
        raise RequestError(
            f"{checkpoint.folder} takes no images: there is nothing to bundle", hint="leave --bundle out"
        )
    return Job(checkpoint, family, out, settings, progress)


def model_name(folder: Path) -> str:
    """A folder's name in characters that any file system takes; a hub snapshot's is its repository's."""
    resolved = folder.resolve()
    hub = re.search(r"models--[^/]+--([^/]+)/snapshots/", f"{resolved}/")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", hub[1] if hub else resolved.name).strip("-.") or "model"


def hub_source(folder: Path) -> str | None:
    """The hub id and revision of a downloaded snapshot's folder, "owner/name@revision"."""
    found = re.search(r"models--([^/]+)--([^/]+)/snapshots/([0-9a-f]+)$", folder.resolve().as_posix())
    return f"{found[1]}/{found[2]}@{found[3]}" if found else None


def key_of(*inputs: Any) -> str:
    """A short name that changes with everything it is made of; `inputs` are plain JSON values."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:24]
