"""Measures a CPU once, for predictions: the rate of every type, the memory's bandwidth, and what else a token costs.

Takes nothing but the machine, gives a `Profile`; kept in the user's cache folder by CPU and version of llama.cpp.
"""

from __future__ import annotations

import os
import re
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil
from gguf.constants import GGMLQuantizationType

from luq_gguf.artifacts import read_record, write_record
from luq_gguf.bench import OTHER, Part, PartSamples, measure_bandwidth, measure_parts
from luq_gguf.errors import ArtifactError
from luq_gguf.families.text_only import Qwen2
from luq_gguf.plan import layer_of
from luq_gguf.processors import cpu_name, default_threads
from luq_gguf.progress import Progress, silent
from luq_gguf.random_gguf import write_random_gguf
from luq_gguf.speed import OtherCosts, Profile, Rates, Tensor, Workload, workload

Q = GGMLQuantizationType
TYPES = (
    Q.F16, Q.BF16, Q.Q8_0, Q.Q6_K, Q.Q5_K, Q.Q5_0, Q.Q5_1, Q.Q4_K, Q.Q4_0, Q.Q4_1, Q.IQ4_NL, Q.IQ4_XS, Q.Q3_K, Q.IQ3_S,
    Q.IQ3_XXS, Q.Q2_K, Q.IQ2_S, Q.IQ2_XS, Q.IQ2_XXS, Q.IQ1_M, Q.IQ1_S,
)  # fmt: skip
"""Every type that a plan may have in a matrix."""
PROMPT, LONG_PROMPT = 128, 512
GENERATED = 16
ROUNDS = 2
DEEP, WIDE = (*TYPES, TYPES[-2]), (Q.Q4_K, Q.Q4_K)
"""Types of the layers of two decoders. A prompt's last token alone goes through the last layer's feed-forward part, so
that one measures no type."""
FIRST_CACHE = 32 << 10
"""A core's first data cache in bytes, where the system does not tell."""
BUSY_PERCENT = 20.0
LEAST = 1e-6
"""Nanoseconds that nothing falls below, however noisy."""
DECODER: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"], "vocab_size": 512, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
    "rope_theta": 1e6, "tie_word_embeddings": False,
}  # fmt: skip
DEEP_SIZES = {"hidden_size": 1024, "intermediate_size": 18944, "num_attention_heads": 8, "num_key_value_heads": 2}
"""Rows of 1,024 weights, and in ffn_down of as many as in the 7B models of Qwen: so long that they are slower."""
WIDE_SIZES = {"hidden_size": 4096, "intermediate_size": 1024, "num_attention_heads": 32, "num_key_value_heads": 8}


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
    """Measure this CPU in about a minute; `threads` () takes one and all cores."""
    with Profiler(threads, progress) as profiler:
        return profiler.measure(ROUNDS, progress)


class Profiler:
    """Writes what is measured into a folder of its own, and measures this CPU as often as wanted; a context manager.

    A deep decoder with layers of every type tells the types' rates; it and a wide one of few layers tell the other
    costs, and the wide one after a long prompt those of a context.
    """

    def __init__(self, threads: Sequence[int] = (), progress: Progress = silent) -> None:
        self.threads = sorted(set(threads) or {1, default_threads()})
        self._folder = tempfile.TemporaryDirectory(prefix="luq-gguf-")
        try:
            folder = Path(self._folder.name)
            self._deep = _write(folder / "deep.gguf", DEEP, DEEP_SIZES, progress)
            self._wide = _write(folder / "wide.gguf", WIDE, WIDE_SIZES, progress)
        except BaseException:
            self._folder.cleanup()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ended: object) -> None:
        self._folder.cleanup()

    def measure(self, rounds: int, progress: Progress = silent) -> Profile:
        """Medians over rounds in which everything has its turn, so that a slow moment slows all alike."""
        import llama_cpp

        busy = psutil.cpu_percent(interval=1.0) > BUSY_PERCENT
        deep, wide, long = (self._deep, PROMPT), (self._wide, PROMPT), (self._wide, LONG_PROMPT)
        turns = [_Turn(*what, count) for count in self.threads for what in (deep, wide, long)]
        costs = _measure(turns, rounds, progress)
        rates: dict[str, dict[int, Rates]] = {kind.name: {} for kind in TYPES}
        other = {}
        for count in self.threads:
            of_deep, of_wide, of_long = (costs[turn] for turn in turns if turn.threads == count)
            for kind, found in _rates(of_deep).items():
                rates[kind][count] = found
            other[count] = _other_costs(of_deep, of_wide, of_long)
        memory = measure_bandwidth(self.threads)
        return Profile(
            cpu=cpu_name(),
            llama_cpp=llama_cpp.__version__,
            prompt=PROMPT,
            cache=_first_cache(),
            rates=rates,
            other=other,
            bandwidth={each.threads: each.bytes * 1e9 / statistics.median(each.ns) for each in memory},
            busy=busy,
        )


def keep_profile(profile: Profile, path: Path | None = None) -> Path:
    """Write a profile where predictions look for it, or to `path`."""
    target = path or profile_path(profile.cpu, profile.llama_cpp)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_record(target, profile)
    return target


@dataclass(frozen=True)
class _Decoder:
    """A file of random weights, and the matrices in it."""

    path: Path
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True)
class _Turn:
    """What is measured in turn."""

    decoder: _Decoder
    prompt: int
    threads: int


@dataclass(frozen=True)
class _Layer:
    """Nanoseconds of one layer's products with weights: of its long rows (ffn_down), and of the others."""

    kind: str
    short: float
    long: float


@dataclass(frozen=True)
class _Times:
    """Nanoseconds of a token: layer by layer; beside, between the products of all layers; and around them."""

    layers: tuple[_Layer, ...]
    between: float
    around: float


@dataclass(frozen=True)
class _Costs:
    """What a decoder does for a token, and how long: generating, and of a prompt."""

    work: Workload
    generate: _Times
    prompt: _Times


def _write(path: Path, kinds: Sequence[GGMLQuantizationType], sizes: Mapping[str, int], progress: Progress) -> _Decoder:
    """A decoder with a layer of each type."""
    family = Qwen2({**DECODER, **sizes, "num_hidden_layers": len(kinds)})
    types = {
        tensor.name: Q.F32 if len(tensor.shape) == 1 else kinds[layer_of(tensor.name) or 0]
        for tensor in family.text_tensors()
    }
    matrices = tuple(
        Tensor(tensor.name, tuple(reversed(tensor.shape)), types[tensor.name].name)
        for tensor in family.text_tensors()
        if len(tensor.shape) > 1
    )
    return _Decoder(write_random_gguf(path, family, types, progress=progress), matrices)


def _measure(turns: Sequence[_Turn], rounds: int, progress: Progress) -> dict[_Turn, _Costs]:
    samples: dict[_Turn, list[PartSamples]] = {turn: [] for turn in turns}
    for done, turn in enumerate(list(turns) * rounds):
        progress("measuring types", done, len(turns) * rounds)
        samples[turn] += measure_parts(
            [turn.decoder.path], prompt=turn.prompt, generate=GENERATED, threads=[turn.threads]
        )
    progress("measuring types", len(turns) * rounds, len(turns) * rounds)
    return {turn: _costs(turn, found) for turn, found in samples.items()}


def _costs(turn: _Turn, found: Sequence[PartSamples]) -> _Costs:
    generate, prompt = (_medians([getattr(each, what) for each in found]) for what in ("generate", "prompt"))
    return _Costs(workload(turn.decoder.tensors), _times(generate, 1), _times(prompt, turn.prompt))


def _medians(found: Sequence[Sequence[Part]]) -> list[tuple[str, float]]:
    """Type and nanoseconds of every part, over all samples."""
    return [
        (parts[0].kind, statistics.median(ns for part in parts for ns in part.ns)) for parts in zip(*found, strict=True)
    ]


def _times(parts: Sequence[tuple[str, float]], tokens: int) -> _Times:
    """The long rows are a layer's last part, since activations lie before them; neighbours differ in type."""
    products = [part for part in parts if part[0] != OTHER]
    other = [time / tokens for kind, time in parts if kind == OTHER]
    layers = []
    for kind, run in groupby(products, key=itemgetter(0)):
        times = [time / tokens for _, time in run]
        layers.append(_Layer(kind, sum(times[:-1]), times[-1]))
    return _Times(tuple(layers), sum(other[1:-1]), other[0] + other[-1])


def _rates(deep: _Costs) -> dict[str, Rates]:
    hidden, units = DEEP_SIZES["hidden_size"], DEEP_SIZES["intermediate_size"]
    kv = hidden // DEEP_SIZES["num_attention_heads"] * DEEP_SIZES["num_key_value_heads"]
    short, long = 2 * hidden * (hidden + kv + units), hidden * units
    found = {}
    for kind, generate, prompt in zip(TYPES, deep.generate.layers, deep.prompt.layers, strict=False):
        assert kind.name == generate.kind == prompt.kind
        found[kind.name] = Rates(
            generate=max(LEAST, generate.short / short),
            generate_long=max(LEAST, generate.long / long),
            prompt=max(LEAST, (prompt.short + prompt.long) / (short + long)),
        )
    return found


def _other_costs(deep: _Costs, wide: _Costs, long: _Costs) -> OtherCosts:
    """Two decoders tell what a channel and a unit cost, and the context of one what a token of it does."""
    generate_units = [costs.work.units + costs.work.last_units for costs in (deep, wide)]
    generate = _channel_and_unit(deep.work, wide.work, generate_units, deep.generate.between, wide.generate.between)
    prompt_units = [costs.work.units for costs in (deep, wide)]
    prompt = _channel_and_unit(deep.work, wide.work, prompt_units, deep.prompt.between, wide.prompt.between)
    longer = (long.generate.between - wide.generate.between) / (LONG_PROMPT - PROMPT)
    return OtherCosts(
        generate_channel=generate[0],
        generate_unit=generate[1],
        generate_token=deep.generate.around,
        prompt_channel=prompt[0],
        prompt_unit=prompt[1],
        prompt_token=deep.prompt.around,
        context_channel=max(0.0, longer / wide.work.channels),
    )


def _channel_and_unit(
    deep: Workload, wide: Workload, units: Sequence[int], of_deep: float, of_wide: float
) -> tuple[float, float]:
    """Two equations, channels * x + units * y = time; neither falls below nothing."""
    found = np.linalg.solve([[deep.channels, units[0]], [wide.channels, units[1]]], [of_deep, of_wide])
    return max(0.0, float(found[0])), max(0.0, float(found[1]))


def _first_cache() -> int:
    try:
        return os.sysconf("SC_LEVEL1_DCACHE_SIZE") or FIRST_CACHE
    except (ValueError, OSError):
        return FIRST_CACHE
