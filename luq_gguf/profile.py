"""Measures a CPU once, for predictions: the rate of every type, the memory's bandwidth, and what a token costs besides.

Takes nothing but the machine, gives a `Profile`; kept in the user's cache folder by CPU and version of llama.cpp.
"""

from __future__ import annotations

import os
import re
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from luq_gguf.speed import FixedCosts, Profile, Rates

Q = GGMLQuantizationType
TYPES = (
    Q.F16, Q.BF16, Q.Q8_0, Q.Q6_K, Q.Q5_K, Q.Q5_0, Q.Q5_1, Q.Q4_K, Q.Q4_0, Q.Q4_1, Q.IQ4_NL, Q.IQ4_XS, Q.Q3_K, Q.IQ3_S,
    Q.IQ3_XXS, Q.Q2_K, Q.IQ2_S, Q.IQ2_XS, Q.IQ2_XXS, Q.IQ1_M, Q.IQ1_S,
)  # fmt: skip
"""Every type that a plan may have in a matrix."""
PROMPT = 128
GENERATED = 8
LAYERS, WIDE, NARROW = 4, 10752, 256
"""A decoder's layers, and the width of its feed-forward part: wide in the type that is measured, or hardly there."""
FEW, MORE = 2, 10
"""Layers of the two narrow decoders whose difference is what a layer costs."""
BUSY_PERCENT = 20.0
LEAST = 1e-6
"""Nanoseconds a weight that nothing falls below, however noisy."""
BASE = Q.Q4_K
"""The type of what is not measured."""
DECODER: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"], "hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 2,
    "vocab_size": 512, "max_position_embeddings": 1024, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    "tie_word_embeddings": False,
}  # fmt: skip


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

    counts = sorted(set(threads) or {1, default_threads()})
    busy = psutil.cpu_percent(interval=1.0) > BUSY_PERCENT
    with tempfile.TemporaryDirectory(prefix="luq-gguf-") as folder:
        narrow = {layers: _decoder(Path(folder) / f"{layers}.gguf", layers) for layers in (FEW, LAYERS, MORE)}
        bare = {count: {layers: _nanoseconds(narrow[layers], count) for layers in narrow} for count in counts}
        rates: dict[str, dict[int, Rates]] = {}
        for done, kind in enumerate(TYPES):
            progress("measure types", done, len(TYPES))
            wide = _decoder(Path(folder) / "wide.gguf", LAYERS, kind)
            rates[kind.name] = {count: _rates(_nanoseconds(wide, count), bare[count][LAYERS]) for count in counts}
        progress("measure types", len(TYPES), len(TYPES))
    native = load_native()
    return Profile(
        cpu=cpu_name(),
        llama_cpp=llama_cpp.__version__,
        prompt=PROMPT,
        rates=rates,
        fixed={count: _fixed_costs(bare[count], rates[BASE.name][count]) for count in counts},
        bandwidth={count: _bandwidth(native, count) for count in counts},
        busy=busy,
    )


def keep_profile(profile: Profile, path: Path | None = None) -> Path:
    """Write a profile where predictions look for it, or to `path`."""
    target = path or profile_path(profile.cpu, profile.llama_cpp)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_record(target, profile)
    return target


@dataclass(frozen=True)
class _Decode:
    """Nanoseconds a token: generating, and of a prompt."""

    generate: float
    prompt: float


def _decoder(path: Path, layers: int, kind: GGMLQuantizationType | None = None) -> Path:
    """A decoder of random weights: narrow, or with a wide feed-forward part of a type."""
    family = Qwen2(DECODER | {"num_hidden_layers": layers, "intermediate_size": NARROW if kind is None else WIDE})
    types = {
        tensor.name: Q.F32 if len(tensor.shape) == 1 else kind if kind is not None and ".ffn_" in tensor.name else BASE
        for tensor in family.text_tensors()
    }
    return write_random_gguf(path, family, types)


def _nanoseconds(path: Path, threads: int) -> _Decode:
    samples = measure_decode(path, prompt=PROMPT, generate=GENERATED, threads=threads, repeat=1)
    return _Decode(1e9 / samples.generate_tps, 1e9 / samples.prompt_tps)


def _rates(wide: _Decode, narrow: _Decode) -> Rates:
    """What the wide part costs a weight; of a prompt, the last layer's is computed for the last token alone."""
    weights = 3 * DECODER["hidden_size"] * (WIDE - NARROW) * LAYERS
    of_prompt = weights * (LAYERS - 1 + 1 / PROMPT) / LAYERS
    return Rates(
        generate=max(LEAST, (wide.generate - narrow.generate) / weights),
        prompt=max(LEAST, (wide.prompt - narrow.prompt) / of_prompt),
    )


def _fixed_costs(bare: Mapping[int, _Decode], base: Rates) -> FixedCosts:
    """What layers and tokens cost beside their matrix products, from narrow decoders of different depth."""
    hidden = DECODER["hidden_size"]
    kv = hidden // DECODER["num_attention_heads"] * DECODER["num_key_value_heads"]
    weights = 2 * hidden * hidden + 2 * kv * hidden + 3 * hidden * NARROW
    few, more = bare[FEW], bare[MORE]
    generate_layer = (more.generate - few.generate) / (MORE - FEW) - weights * base.generate
    prompt_layer = (more.prompt - few.prompt) / (MORE - FEW) - weights * base.prompt
    head = DECODER["vocab_size"] * hidden
    generate_token = few.generate - FEW * (weights * base.generate + generate_layer) - head * base.generate
    prompt_token = few.prompt - FEW * (weights * base.prompt + prompt_layer)
    found = {"generate_layer": generate_layer, "generate_token": generate_token, "prompt_layer": prompt_layer}
    return FixedCosts(**{key: max(0.0, value) for key, value in found.items()}, prompt_token=max(0.0, prompt_token))


def _bandwidth(native: ModuleType, threads: int) -> float:
    found = native.bandwidth(threads)
    return float(found["bytes"] * 1e9 / statistics.median(found["ns"]))
