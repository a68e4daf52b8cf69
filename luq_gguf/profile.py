"""Measures a CPU once, for predictions: the rate of every type, the memory's bandwidth, and what a token costs besides.

Takes nothing but the machine, gives a `Profile`; kept in the user's cache folder by CPU and version of llama.cpp.
"""

from __future__ import annotations

import os
import re
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
from gguf.constants import GGMLQuantizationType

from luq_gguf.artifacts import read_record, write_record
from luq_gguf.bench import load_native, measure_decode
from luq_gguf.errors import ArtifactError
from luq_gguf.families.text_only import Qwen2
from luq_gguf.processors import cpu_name, default_threads
from luq_gguf.progress import Progress, silent
from luq_gguf.random_gguf import write_random_gguf
from luq_gguf.speed import FixedCosts, Profile, Rates, Tensor, predict

Q = GGMLQuantizationType
TYPES = (
    Q.F16, Q.BF16, Q.Q8_0, Q.Q6_K, Q.Q5_K, Q.Q5_0, Q.Q5_1, Q.Q4_K, Q.Q4_0, Q.Q4_1, Q.IQ4_NL, Q.IQ4_XS, Q.Q3_K, Q.IQ3_S,
    Q.IQ3_XXS, Q.Q2_K, Q.IQ2_S, Q.IQ2_XS, Q.IQ2_XXS, Q.IQ1_M, Q.IQ1_S,
)  # fmt: skip
"""Every type that a plan may have in a matrix."""
ROWS, COLUMNS = 4096, 4096
PROMPT = 128
GENERATED = 24
SECONDS = 0.25
"""For each type, number of threads and kind of decoding."""
FEW, MORE = 2, 10
"""Layers of the two files whose difference is what a layer costs."""
BUSY_PERCENT = 20.0
SMALL: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"], "hidden_size": 2048, "intermediate_size": 512, "num_attention_heads": 16,
    "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 1024, "rms_norm_eps": 1e-6,
    "rope_theta": 1e6, "tie_word_embeddings": False,
}  # fmt: skip
"""A decoder in which the matrix products take little of the time."""


def profile_path(cpu: str, version: str) -> Path:
    """Where the profile of a CPU is kept, in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{cpu} llama-cpp-python {version}").strip("-")
    return cache / "luq-gguf" / f"profile-{name}.json"


def load_profile(path: Path | None = None) -> Profile | None:
    """The profile in a file, or this CPU's kept one where it was measured; raises ArtifactError where it is broken."""
    if path is None:
        import llama_cpp

        path = profile_path(cpu_name(), llama_cpp.__version__)
        if not path.exists():
            return None
    if not path.is_file():
        raise ArtifactError(f"{path} is no file", path=path, hint="measure one with `luq-gguf profile --out FILE`")
    return read_record(path, Profile)


def measure_profile(threads: Sequence[int] = (), progress: Progress = silent) -> Profile:
    """Measure this CPU in under a minute; `threads` () takes one and all cores."""
    import llama_cpp

    native = load_native()
    counts = sorted(set(threads) or {1, default_threads()})
    busy = psutil.cpu_percent(interval=1.0) > BUSY_PERCENT
    steps = len(TYPES) * len(counts)
    rates: dict[str, dict[int, Rates]] = {}
    for done, kind in enumerate(TYPES):
        for rank, count in enumerate(counts):
            progress("measure types", done * len(counts) + rank, steps)
            rates.setdefault(kind.name, {})[count] = _rates(native, kind, count)
    progress("measure types", steps, steps)
    bandwidth = {count: _bandwidth(native, count) for count in counts}
    free = dict.fromkeys(counts, FixedCosts(generate_layer=0, generate_token=0, prompt_layer=0, prompt_token=0))
    bare = Profile(
        cpu=cpu_name(), llama_cpp=llama_cpp.__version__, prompt=PROMPT, rates=rates, fixed=free, bandwidth=bandwidth,
        busy=busy,
    )  # fmt: skip
    return bare.model_copy(update={"fixed": dict(_fixed_costs(bare, counts, progress))})


def keep_profile(profile: Profile, path: Path | None = None) -> Path:
    """Write a profile where predictions look for it, or to `path`."""
    target = path or profile_path(profile.cpu, profile.llama_cpp)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_record(target, profile)
    return target


def _rates(native: ModuleType, kind: GGMLQuantizationType, threads: int) -> Rates:
    def nanoseconds(batch: int) -> float:
        found = native.kernel(int(kind), ROWS, COLUMNS, batch, threads=threads, min_seconds=SECONDS)
        return float(statistics.median(found["ns"]) / found["weights"] / batch)

    return Rates(generate=nanoseconds(1), prompt=nanoseconds(PROMPT))


def _bandwidth(native: ModuleType, threads: int) -> float:
    found = native.bandwidth(threads)
    return float(found["bytes"] * 1e9 / statistics.median(found["ns"]))


def _fixed_costs(bare: Profile, counts: Sequence[int], progress: Progress) -> Iterator[tuple[int, FixedCosts]]:
    """What layers and tokens cost beside their matrix products, from two decoders of different depth."""
    with tempfile.TemporaryDirectory(prefix="luq-gguf-") as folder:
        files = {layers: _small_decoder(Path(folder), layers) for layers in (FEW, MORE)}
        for rank, count in enumerate(counts):
            progress("measure layers", rank, len(counts))
            left = {layers: _unexplained(path, tensors, bare, count) for layers, (path, tensors) in files.items()}
            layer = [max(0.0, (more - few) / (MORE - FEW)) for few, more in zip(left[FEW], left[MORE], strict=True)]
            token = [max(0.0, few - FEW * each) for few, each in zip(left[FEW], layer, strict=True)]
            yield (
                count,
                FixedCosts(
                    generate_layer=layer[0], generate_token=token[0], prompt_layer=layer[1], prompt_token=token[1]
                ),
            )
        progress("measure layers", len(counts), len(counts))


def _small_decoder(folder: Path, layers: int) -> tuple[Path, list[Tensor]]:
    family = Qwen2(SMALL | {"num_hidden_layers": layers})
    types = {tensor.name: Q.Q4_K if len(tensor.shape) > 1 else Q.F32 for tensor in family.text_tensors()}
    path = write_random_gguf(folder / f"{layers}.gguf", family, types)
    matrices = [tensor for tensor in family.text_tensors() if len(tensor.shape) > 1]
    return path, [Tensor(tensor.name, tuple(reversed(tensor.shape)), types[tensor.name].name) for tensor in matrices]


def _unexplained(path: Path, tensors: list[Tensor], bare: Profile, threads: int) -> tuple[float, float]:
    """Nanoseconds a token beyond the matrix products: generating, and of a prompt."""
    samples = measure_decode(path, prompt=PROMPT, generate=GENERATED, threads=threads, repeat=2)
    expected = predict(tensors, bare, threads)
    return 1e9 / samples.generate_tps - 1e9 / expected.generate, 1e9 / samples.prompt_tps - 1e9 / expected.prompt
