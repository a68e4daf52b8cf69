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
from pathlib import Path
from typing import Any, Self

import psutil
from gguf.constants import GGMLQuantizationType

from luq_gguf.artifacts import read_record, write_record
from luq_gguf.bench import OTHER, TypeSamples, measure_bandwidth, measure_types
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
DEEP, SHORT = (*TYPES, TYPES[-1]), (Q.Q4_K, Q.Q4_K)
"""Types of the layers of two decoders. A prompt's last token alone goes through the last layer's feed-forward part, so
that the last type has two layers."""
BUSY_PERCENT = 20.0
LEAST = 1e-6
"""Nanoseconds that nothing falls below, however noisy."""
DECODER: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"], "hidden_size": 2048, "intermediate_size": 10752, "num_attention_heads": 16,
    "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
    "rope_theta": 1e6, "tie_word_embeddings": False,
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
    """Measure this CPU in about a minute; `threads` () takes one and all cores."""
    with Profiler(threads, progress) as profiler:
        return profiler.measure(ROUNDS, progress)


class Profiler:
    """Writes what is measured into a folder of its own, and measures this CPU as often as wanted; a context manager.

    A decoder with layers of every type tells the types' rates; it and a short one tell the other costs, and the short
    one after a long prompt those of a context.
    """

    def __init__(self, threads: Sequence[int] = (), progress: Progress = silent) -> None:
        self.threads = sorted(set(threads) or {1, default_threads()})
        self._folder = tempfile.TemporaryDirectory(prefix="luq-gguf-")
        try:
            folder = Path(self._folder.name)
            self._deep = _write(folder / "deep.gguf", DEEP, progress)
            self._short = _write(folder / "short.gguf", SHORT, progress)
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
        deep, short, long = (self._deep, PROMPT), (self._short, PROMPT), (self._short, LONG_PROMPT)
        turns = [_Turn(*what, count) for count in self.threads for what in (deep, short, long)]
        costs = _measure(turns, rounds, progress)
        rates: dict[str, dict[int, Rates]] = {kind.name: {} for kind in TYPES}
        other = {}
        for count in self.threads:
            of_deep, of_short, of_long = (costs[turn] for turn in turns if turn.threads == count)
            for kind, found in _rates(of_deep).items():
                rates[kind][count] = found
            other[count] = _other_costs(of_deep, of_short, of_long)
        memory = measure_bandwidth(self.threads)
        return Profile(
            cpu=cpu_name(),
            llama_cpp=llama_cpp.__version__,
            prompt=PROMPT,
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
class _Costs:
    """What tokens do, and the nanoseconds that it takes by type, or OTHER: of a generated token, of one of a prompt."""

    generate: dict[str, float]
    generated: Workload
    prompt: dict[str, float]
    prompted: Workload


def _write(path: Path, kinds: Sequence[GGMLQuantizationType], progress: Progress) -> _Decoder:
    """A decoder with a layer of each type."""
    family = Qwen2(DECODER | {"num_hidden_layers": len(kinds)})
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
    samples: dict[_Turn, list[TypeSamples]] = {turn: [] for turn in turns}
    for done, turn in enumerate(list(turns) * rounds):
        progress("measuring types", done, len(turns) * rounds)
        samples[turn] += measure_types(
            [turn.decoder.path], prompt=turn.prompt, generate=GENERATED, threads=[turn.threads]
        )
    progress("measuring types", len(turns) * rounds, len(turns) * rounds)
    return {turn: _costs(turn, found) for turn, found in samples.items()}


def _costs(turn: _Turn, found: Sequence[TypeSamples]) -> _Costs:
    kinds = found[0].prompt_ns
    return _Costs(
        {kind: statistics.median(ns for each in found for ns in each.generate_ns[kind]) for kind in kinds},
        workload(turn.decoder.tensors, 1),
        {kind: statistics.median(ns for each in found for ns in each.prompt_ns[kind]) / turn.prompt for kind in kinds},
        workload(turn.decoder.tensors, turn.prompt),
    )


def _rates(deep: _Costs) -> dict[str, Rates]:
    return {
        kind: Rates(
            generate=max(LEAST, deep.generate[kind] / deep.generated.weights[kind]),
            prompt=max(LEAST, deep.prompt[kind] / deep.prompted.weights[kind]),
        )
        for kind in deep.generated.weights
    }


def _other_costs(deep: _Costs, short: _Costs, long: _Costs) -> OtherCosts:
    """Two decoders tell what an output costs and what a token, and the context of one what a token of it does."""
    generate = _line(deep.generate, deep.generated, short.generate, short.generated)
    prompt = _line(deep.prompt, deep.prompted, short.prompt, short.prompted)
    channels = len(SHORT) * DECODER["hidden_size"]
    longer = (long.generate[OTHER] - short.generate[OTHER]) / (LONG_PROMPT - PROMPT)
    return OtherCosts(
        generate_output=generate[0],
        generate_token=generate[1],
        prompt_output=prompt[0],
        prompt_token=prompt[1],
        context_channel=max(0.0, longer / channels),
    )


def _line(
    deep: Mapping[str, float], much: Workload, short: Mapping[str, float], little: Workload
) -> tuple[float, float]:
    """What an output costs, and what there is besides."""
    output = max(0.0, (deep[OTHER] - short[OTHER]) / (much.outputs - little.outputs))
    return output, max(0.0, short[OTHER] - little.outputs * output)
