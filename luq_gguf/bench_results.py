"""What follows from a benchmark's record: speeds with intervals, ratios, shares of the memory's bandwidth, of types.

Pure. One round is one sample: a round's generation counts with the median of its tokens.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from luq_gguf.bench_record import BenchRecord, DecodeRun
from luq_gguf.bench_statistics import Interval, median_interval, paired_ratio

PROMPT, GENERATION, ENCODING, IMAGE = "prompt", "generation", "image encoding", "image prompt"
PHASES = (PROMPT, GENERATION, ENCODING, IMAGE)


@dataclass(frozen=True)
class Timed:
    """Nanoseconds of one file in one phase, one entry a round, each for `tokens` tokens."""

    file: int
    threads: int
    phase: str
    tokens: int
    rounds_ns: tuple[float, ...]


@dataclass(frozen=True)
class Speed:
    """What a phase of one file comes to.

    `rate` is in tokens a second, `milliseconds` are those of a token; `ratio` is the rate against the first file's with
    as many threads, None for that file itself. Of generation, `gigabytes` (1e9 bytes) of weights are read a second, the
    `share` of what the memory was measured to give.
    """

    file: int
    threads: int
    phase: str
    tokens: int
    rate: Interval
    milliseconds: Interval
    ratio: Interval | None
    gigabytes: float | None = None
    share: float | None = None


def speeds(record: BenchRecord) -> list[Speed]:
    """Every phase of every file, by phase, then by number of threads, then by file."""
    timed = [*_timed_decodes(record), *_timed_images(record)]
    timed.sort(key=lambda each: (PHASES.index(each.phase), record.settings.threads.index(each.threads), each.file))
    first = {(each.phase, each.threads): each for each in timed if each.file == 0}
    return [_speed(record, each, first[each.phase, each.threads]) for each in timed]


def type_shares(record: BenchRecord) -> dict[tuple[str, int, int], dict[str, float]]:
    """By phase, threads and file: shares of the time by type of weights, or OTHER, the largest first; 1 in all."""
    found = {}
    for run in record.types:
        for phase, samples in ((PROMPT, run.prompt_ns), (GENERATION, run.generate_ns)):
            times = {kind: statistics.median(each) for kind, each in samples.items()}
            whole = sum(times.values())
            ordered = sorted(times.items(), key=lambda item: -item[1])
            found[phase, run.threads, run.file] = {kind: time / whole for kind, time in ordered}
    return found


def bandwidth_rate(record: BenchRecord, threads: int) -> float:
    """Gigabytes a second (1e9 bytes) that the memory gave to so many threads, in the median."""
    run = next(run for run in record.bandwidth if run.threads == threads)
    return run.bytes / statistics.median(run.ns)


def round_medians(samples: Sequence[int], rounds: int) -> tuple[float, ...]:
    """The median of each round, of samples of which every round has as many."""
    each = len(samples) // rounds
    return tuple(statistics.median(samples[start : start + each]) for start in range(0, len(samples), each))


def tokens_per_second(timed: Timed) -> tuple[float, ...]:
    """The rate of each round."""
    return tuple(timed.tokens * 1e9 / nanoseconds for nanoseconds in timed.rounds_ns)


def timed_run(run: DecodeRun, prompt: int, rounds: int) -> tuple[Timed, Timed]:
    """Prompt and generation of a run."""
    generated = round_medians(run.generate_ns, rounds)
    return (
        Timed(run.file, run.threads, PROMPT, prompt, tuple(map(float, run.prompt_ns))),
        Timed(run.file, run.threads, GENERATION, 1, generated),
    )


def _timed_decodes(record: BenchRecord) -> Iterator[Timed]:
    for run in record.runs:
        yield from timed_run(run, record.settings.prompt, record.settings.rounds)


def _timed_images(record: BenchRecord) -> Iterator[Timed]:
    for run in record.images:
        for phase, samples in ((ENCODING, run.encode_ns), (IMAGE, run.prompt_ns)):
            yield Timed(run.file, run.threads, phase, run.tokens, tuple(map(float, samples)))


def _speed(record: BenchRecord, timed: Timed, first: Timed) -> Speed:
    time = median_interval(timed.rounds_ns)
    rate = time.map(lambda nanoseconds: timed.tokens * 1e9 / nanoseconds)
    gigabytes = rate.median * _read_bytes(record, timed) / 1e9 if timed.phase == GENERATION else None
    return Speed(
        file=timed.file,
        threads=timed.threads,
        phase=timed.phase,
        tokens=timed.tokens,
        rate=rate,
        milliseconds=time.map(lambda nanoseconds: nanoseconds / timed.tokens / 1e6),
        ratio=paired_ratio(tokens_per_second(first), tokens_per_second(timed)) if timed.file else None,
        gigabytes=gigabytes,
        share=gigabytes / bandwidth_rate(record, timed.threads) if gigabytes is not None else None,
    )


def _read_bytes(record: BenchRecord, timed: Timed) -> int:
    return next(run.read_bytes for run in record.runs if (run.file, run.threads) == (timed.file, timed.threads))
