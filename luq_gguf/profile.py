"""Measures a CPU once, for predictions: the rate of every type, the memory's bandwidth, and what else a token costs.

Takes nothing but the machine, gives a `Profile`; kept in the user's cache folder by CPU and version of llama.cpp.
"""

from __future__ import annotations

import os
import re
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil
from gguf.constants import GGMLQuantizationType

from luq_gguf.artifacts import cache_folder, read_record, write_record
from luq_gguf.bench import OTHER, Part, PartSamples, measure_bandwidth, measure_decode, measure_parts
from luq_gguf.errors import ArtifactError
from luq_gguf.families.text_only import Qwen2
from luq_gguf.planning import layer_of
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
GENERATED = CUT_TOKENS = 16
ROUNDS = 2
LAYERS, CONTEXT_LAYERS, SMALL_LAYERS = (*TYPES, TYPES[-2]), (Q.Q4_K,) * 2, (Q.Q4_K,) * 8
"""Types of the layers of decoders. A prompt's last token alone goes through the last layer's feed-forward part, so
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
WIDE = {"hidden_size": 3584, "intermediate_size": 2048, "num_attention_heads": 28, "num_key_value_heads": 1}
LONG = {"hidden_size": 512, "intermediate_size": 18944, "num_attention_heads": 4, "num_key_value_heads": 4}
CONTEXT = WIDE | {"num_key_value_heads": 4}
SMALL = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 4, "num_key_value_heads": 4}
"""Decoders with rows as they are in the 7B models of Qwen, but not as many of them. In LONG those of ffn_down are
long, which are slower, and the others short, which tells what a row costs."""


def profile_path(cpu: str, version: str) -> Path:
    """Where the profile of a CPU is kept, in the user's cache folder."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{cpu} llama-cpp-python {version}").strip("-")
    return cache_folder() / f"profile-{name}.json"


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

    Two decoders with layers of every type, WIDE and LONG, tell the types' rates and the other costs; one of few layers,
    after a short and a long prompt, those of a context; and a small one what it costs to time parts.
    """

    def __init__(self, threads: Sequence[int] = (), progress: Progress = silent) -> None:
        self.threads = sorted(set(threads) or {1, default_threads()})
        self._samples: dict[_Turn, list[PartSamples]] = {}
        self._cuts: dict[int, list[float]] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="luq-gguf-")
        try:
            folder = Path(self._folder.name)
            self._wide = _write(folder / "wide.gguf", LAYERS, WIDE, progress)
            self._long = _write(folder / "long.gguf", LAYERS, LONG, progress)
            self._context = _write(folder / "context.gguf", CONTEXT_LAYERS, CONTEXT, progress)
            self._small = _write(folder / "small.gguf", SMALL_LAYERS, SMALL, progress)
        except BaseException:
            self._folder.cleanup()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ended: object) -> None:
        self._folder.cleanup()

    def measure(self, rounds: int, progress: Progress = silent, *, earlier: int = 0) -> Profile:
        """Measure rounds in which everything has its turn, so that a slow moment slows all alike.

        The last `earlier` rounds of calls before count, too.
        """
        import llama_cpp

        busy = psutil.cpu_percent(interval=1.0) > BUSY_PERCENT
        measured = (
            (self._wide, PROMPT), (self._long, PROMPT), (self._context, PROMPT), (self._context, LONG_PROMPT),
        )  # fmt: skip
        turns = [_Turn(*what, count) for count in self.threads for what in measured]
        costs = self._measure(turns, rounds, earlier, progress)
        rates: dict[str, dict[int, Rates]] = {kind.name: {} for kind in TYPES}
        other = {}
        for count in self.threads:
            wide, long, *contexts = (costs[turn] for turn in turns if turn.threads == count)
            for kind, found in _rates(wide, long).items():
                rates[kind][count] = found
            other[count] = _other_costs(wide, long, contexts)
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

    def _measure(self, turns: Sequence[_Turn], rounds: int, earlier: int, progress: Progress) -> dict[_Turn, _Costs]:
        for done, turn in enumerate(list(turns) * rounds):
            progress("measuring types", done, len(turns) * rounds)
            self._samples.setdefault(turn, []).extend(
                measure_parts([turn.decoder.path], prompt=turn.prompt, generate=GENERATED, threads=[turn.threads])
            )
        progress("measuring types", len(turns) * rounds, len(turns) * rounds)
        for count in self.threads * rounds:
            self._cuts.setdefault(count, []).append(self._measure_cut(count))
        kept = -(rounds + earlier)
        cuts = {count: max(0.0, statistics.median(self._cuts[count][kept:])) for count in self.threads}
        return {turn: _costs(turn, self._samples[turn][kept:], cuts[turn.threads]) for turn in turns}

    def _measure_cut(self, threads: int) -> float:
        """Nanoseconds that timing part by part costs a part, from a decoder that is fast enough to show it."""
        path = self._small.path
        plain = measure_decode(path, prompt=PROMPT, generate=CUT_TOKENS, threads=threads, repeat=1).generate_ns
        (found,) = measure_parts([path], prompt=PROMPT, generate=CUT_TOKENS, threads=[threads])
        cut = [sum(times) for times in zip(*(part.ns for part in found.generate), strict=True)]
        return float(statistics.median(cut) - statistics.median(plain)) / len(found.generate)


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

    def layer(self) -> list[Tensor]:
        """The matrices of one."""
        return [tensor for tensor in self.tensors if layer_of(tensor.name) == 0]


@dataclass(frozen=True)
class _Turn:
    """What is measured in turn."""

    decoder: _Decoder
    prompt: int
    threads: int


@dataclass(frozen=True)
class _Layer:
    """Nanoseconds of one layer's products with weights: of ffn_down, and of the others."""

    kind: str
    others: float
    down: float


@dataclass(frozen=True)
class _Times:
    """Nanoseconds of a token: layer by layer; beside, between the products of all layers; and around them."""

    layers: tuple[_Layer, ...]
    between: float
    around: float


@dataclass(frozen=True)
class _Costs:
    """What a decoder does for a token, and how long: generating, and of a prompt."""

    decoder: _Decoder
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


def _costs(turn: _Turn, found: Sequence[PartSamples], cut: float) -> _Costs:
    """Medians over all samples; of prompts, of which there may be two, the lower one: other programs only slow them."""
    generate = [
        (kind, max(0.0, time - cut)) for kind, time in _choose(statistics.median, [each.generate for each in found])
    ]
    prompt = _choose(statistics.median_low, [each.prompt for each in found])
    return _Costs(turn.decoder, workload(turn.decoder.tensors), _times(generate, 1), _times(prompt, turn.prompt))


def _choose(choice: Callable[[Iterable[int]], float], found: Sequence[Sequence[Part]]) -> list[tuple[str, float]]:
    """Type and nanoseconds of every part, one of its samples."""
    return [(parts[0].kind, choice([ns for part in parts for ns in part.ns])) for parts in zip(*found, strict=True)]


def _times(parts: Sequence[tuple[str, float]], tokens: int) -> _Times:
    """Neighbours differ in type; ffn_down is a layer's last part, since activations lie before it."""
    products = [part for part in parts if part[0] != OTHER]
    other = [time / tokens for kind, time in parts if kind == OTHER]
    layers = []
    for kind, run in groupby(products, key=itemgetter(0)):
        times = [time / tokens for _, time in run]
        layers.append(_Layer(kind, sum(times[:-1]), times[-1]))
    return _Times(tuple(layers), sum(other[1:-1]), other[0] + other[-1])


def _rates(wide: _Costs, long: _Costs) -> dict[str, Rates]:
    """From rows of three lengths: those of WIDE, and ffn_down and the others of LONG.

    Prompts from WIDE alone: llama.cpp rounds the inputs of each matrix to 8 bits anew (about 1.2 ns a number), which
    matrices of few rows, as LONG has them, pay dearly for.
    """
    (_, *middles), (down, *shorts) = (_down_first(costs.decoder.layer()) for costs in (wide, long))
    prompted = sum(tensor.weights for tensor in wide.decoder.layer())
    found = {}
    for place, kind in enumerate(TYPES):
        of_wide, of_long = wide.generate.layers[place], long.generate.layers[place]
        assert kind.name == of_wide.kind == of_long.kind
        short = of_long.others / _rows(shorts), shorts[0].shape[0]
        middle = of_wide.others / _rows(middles), middles[0].shape[0]
        row, weight = _row_and_weight(short, middle)
        long_row = of_long.down / _rows([down]) - row
        of_prompt = wide.prompt.layers[place]
        found[kind.name] = Rates(
            row=row,
            weight=weight,
            long_weight=max(LEAST, long_row / down.shape[0]),
            prompt=max(LEAST, (of_prompt.others + of_prompt.down) / prompted),
        )
    return found


def _rows(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.outputs for tensor in tensors)


def _down_first(layer: Sequence[Tensor]) -> list[Tensor]:
    return sorted(layer, key=lambda tensor: "ffn_down" not in tensor.name)


def _row_and_weight(short: tuple[float, int], middle: tuple[float, int]) -> tuple[float, float]:
    """What a row costs, and each weight of it, from two times of rows and their lengths."""
    weight = (middle[0] - short[0]) / (middle[1] - short[1])
    row = middle[0] - middle[1] * weight
    return (row, weight) if row > 0 and weight > 0 else (0.0, max(LEAST, middle[0] / middle[1]))


def _other_costs(wide: _Costs, long: _Costs, contexts: Sequence[_Costs]) -> OtherCosts:
    """Two decoders tell what a channel and a unit cost, and a third what a token of a context does."""
    generate_units = [costs.work.units + costs.work.last_units for costs in (wide, long)]
    generate = _channel_and_unit(wide.work, long.work, generate_units, wide.generate.between, long.generate.between)
    prompt_units = [costs.work.units for costs in (wide, long)]
    prompt = _channel_and_unit(wide.work, long.work, prompt_units, wide.prompt.between, long.prompt.between)
    before, after = contexts
    longer = (after.generate.between - before.generate.between) / (LONG_PROMPT - PROMPT)
    return OtherCosts(
        generate_channel=generate[0],
        generate_unit=generate[1],
        generate_token=wide.generate.around,
        prompt_channel=prompt[0],
        prompt_unit=prompt[1],
        prompt_token=wide.prompt.around,
        context_channel=max(0.0, longer / before.work.channels),
    )


def _channel_and_unit(
    wide: Workload, long: Workload, units: Sequence[int], of_wide: float, of_long: float
) -> tuple[float, float]:
    """Two equations, channels * x + units * y = time; neither falls below nothing."""
    found = np.linalg.solve([[wide.channels, units[0]], [long.channels, units[1]]], [of_wide, of_long])
    return max(0.0, float(found[0])), max(0.0, float(found[1]))


def _first_cache() -> int:
    try:
        return os.sysconf("SC_LEVEL1_DCACHE_SIZE") or FIRST_CACHE
    except (ValueError, OSError):
        return FIRST_CACHE
