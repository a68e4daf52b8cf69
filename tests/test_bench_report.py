"""Records made by hand: what follows from them, their forms, what is no record, and how two of them compare."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from luq_gguf.artifacts import read_record, write_record
from luq_gguf.bench_compare import compare_records, comparison_report
from luq_gguf.bench_record import (
    BandwidthRun,
    BenchFile,
    BenchImage,
    BenchRecord,
    BenchSettings,
    DecodeRun,
    ImageRun,
    TypeRun,
    Versions,
    describe_file,
)
from luq_gguf.bench_report import (
    COLUMNS,
    check_plot,
    draw_plot,
    format_csv,
    format_markdown,
    format_text,
    report_of,
)
from luq_gguf.bench_results import bandwidth_rate, round_medians, speeds, type_shares
from luq_gguf.errors import ArtifactError, RequestError
from luq_gguf.machine import Machine
from tests.ggufs import Shape, write_text_gguf

MILLION = 1_000_000
MACHINE = Machine(
    cpu="Some CPU", physical_cores=8, logical_cores=16, usable=16, flags=("avx2", "fma"), memory_bytes=32 << 30,
    governor="performance", system="Some Linux",
)  # fmt: skip


def make_file(name: str, number: int = 0) -> BenchFile:
    types = {"F32": 1000, "IQ1_M": 3000, "Q4_K": 6000}
    return BenchFile(name=name, sha256=f"{number:064x}", bytes=11_000, parameters=20_000, type_bytes=types)


def make_run(file: int, threads: int, token_ms: float, rounds: int, generate: int) -> DecodeRun:
    """Prompts take ten times a token; a token of each round is far off."""
    token = int(token_ms * MILLION)
    drift = [100 * number for number in range(rounds)]
    samples = [ns for step in drift for ns in (token + step,) * (generate - 1) + (100 * token,)]
    return DecodeRun(
        file=file, threads=threads, prompt_ns=tuple(10 * token + step for step in drift), generate_ns=tuple(samples),
        load_ns=(3 * MILLION,) * rounds, context=256, kv_bytes=4096, read_bytes=9 * MILLION,
    )  # fmt: skip


def make_types(file: int, threads: int) -> TypeRun:
    """Of a token's time 10 parts go to F32, 50 to IQ1_M, 40 to the rest; of a prompt's 25, 50 and 25."""
    token = {"F32": (10, 90, 1), "IQ1_M": (50, 50, 50), "other": (40, 40, 40)}
    return TypeRun(
        file=file, threads=threads, prompt_ns={"F32": (5,), "IQ1_M": (10,), "other": (5,)}, generate_ns=token
    )


def make_record(
    *token_ms: float,
    threads: tuple[int, ...] = (4,),
    rounds: int = 6,
    image: bool = False,
    settings: dict[str, Any] | None = None,
    **changed: Any,
) -> BenchRecord:
    """A record of files that take so many milliseconds a token with one thread."""
    asked: dict[str, Any] = {"prompt": 100, "generate": 5, "rounds": rounds, "threads": threads} | (settings or {})
    if image:
        asked["image"] = BenchImage(sha256="f" * 64, width=56, height=28, mmproj=make_file("mmproj.gguf", 99))
    turns = [(count, file) for count in threads for file in range(len(token_ms))]
    content: dict[str, Any] = {
        "date": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "versions": Versions(luq_gguf="0.1.0", llama_cpp_python="0.3.36", system_info="CPU : AVX2 = 1"),
        "machine": MACHINE,
        "settings": BenchSettings(**asked),
        "files": tuple(make_file(f"model-{number}.gguf", number) for number in range(len(token_ms))),
        "runs": tuple(
            make_run(file, count, token_ms[file] / count, rounds, asked["generate"]) for count, file in turns
        ),
        "images": tuple(
            ImageRun(
                file=file,
                threads=count,
                tokens=2,
                encode_ns=(30 * MILLION,) * rounds,
                prompt_ns=(8 * MILLION,) * rounds,
            )
            for count, file in turns
        )
        if image
        else (),
        "types": tuple(make_types(file, count) for count, file in turns),
        "bandwidth": tuple(BandwidthRun(threads=count, bytes=10**9, ns=(40 * MILLION,) * 3) for count in threads),
        "peak_memory": 50 << 20,
    }
    return BenchRecord(**(content | changed))


def test_a_round_counts_with_its_median():
    assert round_medians([1, 2, 9, 4, 4, 7], 2) == (2, 4)
    assert round_medians([5, 6, 7], 3) == (5, 6, 7)


def test_what_follows_from_the_samples():
    found = speeds(make_record(2.0, 1.0, threads=(2, 1)))
    assert [(speed.phase, speed.threads, speed.file) for speed in found] == [
        (phase, count, file) for phase in ("prompt", "generation") for count in (2, 1) for file in (0, 1)
    ]
    first, other = found[6], found[7]
    assert first.rate.median == pytest.approx(500, rel=1e-3)
    assert first.milliseconds.median == pytest.approx(2.0, rel=1e-3)
    assert first.ratio is None
    assert other.ratio is not None
    assert other.ratio.median == pytest.approx(2, rel=1e-3)
    assert other.gigabytes == pytest.approx(1000 * 9e6 / 1e9, rel=1e-3)
    assert other.share == pytest.approx(other.gigabytes / 25)
    assert found[0].rate.median == pytest.approx(100 / 0.010, rel=1e-3)
    assert found[0].gigabytes is None


def test_shares_of_the_time_are_those_of_medians():
    found = type_shares(make_record(1.0, threads=(1, 2)))
    assert list(found) == [(phase, count, 0) for count in (1, 2) for phase in ("prompt", "generation")]
    assert found["generation", 2, 0] == {"IQ1_M": 0.5, "other": 0.4, "F32": 0.1}
    assert list(found["generation", 1, 0]) == ["IQ1_M", "other", "F32"]


def test_a_record_without_types_has_no_table_of_them():
    record = make_record(1.0, types=())
    assert "time by type" not in format_text(report_of(record))
    assert next(csv.DictReader(io.StringIO(format_csv(record))))["time_by_type"] == ""
    empty = make_record(1.0, types=(TypeRun(file=0, threads=4, prompt_ns={}, generate_ns={}),))
    assert "not told" in format_text(report_of(empty))


def test_what_speaks_against_a_vision_part_is_said():
    record = make_record(1.0, image=True)
    image = record.settings.image.model_copy(update={"doubts": ("it is another's",)})
    settings = record.settings.model_copy(update={"image": image})
    assert format_text(report_of(record.model_copy(update={"settings": settings}))).endswith("\nit is another's")


def test_the_memorys_bandwidth():
    assert bandwidth_rate(make_record(1.0, threads=(1, 2)), 2) == 25


TABLE = """\
prompt, 100 tokens, 1 thread
file          tokens/s     95 % interval  ms/token           against model-0.gguf
model-0.gguf     5,000    5,000 .. 5,000     0.200                              1
model-1.gguf    10,000  10,000 .. 10,000     0.100  2.000 (2.000 .. 2.000) faster

generation, 5 tokens, 1 thread
file          tokens/s   95 % interval  ms/token  GB/s  of memory's           against model-0.gguf
model-0.gguf     499.9  499.9 .. 500.0     2.000   4.5         18 %                              1
model-1.gguf     999.8  999.5 .. 1,000     1.000   9.0         36 %  2.000 (2.000 .. 2.000) faster

image encoding, 2 tokens, 1 thread
file          tokens/s   95 % interval  ms/image                               against model-0.gguf
model-0.gguf     66.67  66.67 .. 66.67     30.00                                                  1
model-1.gguf     66.67  66.67 .. 66.67     30.00  1.000 (1.000 .. 1.000) no difference beyond noise

image prompt, 2 tokens, 1 thread
file          tokens/s   95 % interval  ms/image                               against model-0.gguf
model-0.gguf     250.0  250.0 .. 250.0     8.000                                                  1
model-1.gguf     250.0  250.0 .. 250.0     8.000  1.000 (1.000 .. 1.000) no difference beyond noise

time by type, 1 thread
file                                          prompt                              generation
model-0.gguf  IQ1_M 50.0 %, F32 25.0 %, other 25.0 %  IQ1_M 50.0 %, other 40.0 %, F32 10.0 %
model-1.gguf  IQ1_M 50.0 %, F32 25.0 %, other 25.0 %  IQ1_M 50.0 %, other 40.0 %, F32 10.0 %

files
file           MiB  bits/weight  load ms                          bytes by type
model-0.gguf  0.01         4.00    3.000  Q4_K 60.0 %, IQ1_M 30.0 %, F32 10.0 %
model-1.gguf  0.01         4.00    3.000  Q4_K 60.0 %, IQ1_M 30.0 %, F32 10.0 %

Some CPU, 8 cores, 16 logical; 32.0 GiB of memory; Some Linux
frequency governor: performance; vector instructions: avx2 fma
luq_gguf 0.1.0, llama-cpp-python 0.3.36, 2026-01-02 03:04 UTC
6 rounds in turn; memory: 25.0 GB/s with 1 thread; at most 50 MiB of memory held"""


def test_the_table():
    assert format_text(report_of(make_record(2.0, 1.0, threads=(1,), image=True))) == TABLE


def test_what_to_mind():
    few = format_text(report_of(make_record(2.0, 1.0, rounds=3, threads=(1, 32))))
    assert "range of rounds" in few
    assert "95 % interval" not in few
    assert few.count("too few rounds to tell") == 4
    assert "3 rounds: the median lies within their range with 75 %; for 95 % take 6 or more" in few
    assert "more threads than the 16 processors in use" in few
    cached = format_text(report_of(make_record(0.1, settings={"cpus": (0, 1, 2, 3)})))
    assert "above 100 % of the memory's bandwidth" in cached
    assert "6 rounds in turn, on processors 0, 1, 2, 3;" in cached


def test_one_file_is_held_against_nothing():
    assert "against" not in format_text(report_of(make_record(2.0)))


def test_files_of_one_name_are_told_apart():
    files = (make_file("model.gguf", 1), make_file("other.gguf", 2), make_file("model.gguf", 3))
    assert make_record(1.0, 2.0, 3.0, files=files).labels() == ["model.gguf #1", "other.gguf", "model.gguf #3"]


def test_names_do_nothing_to_a_terminal_or_a_page():
    record = make_record(1.0, files=(make_file("a\x1b[2J|<b>_x_.gguf"),))
    assert "a\\x1b[2J|<b>_x_.gguf" in format_text(report_of(record))
    assert r"| a\\x1b\[2J\|\<b\>\_x\_.gguf |" in format_markdown(report_of(record))


def test_markdown_has_the_tables_cells():
    record = make_record(2.0, 1.0, threads=(1, 2), image=True)
    report = report_of(record)
    lines = format_markdown(report).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == sum(2 + len(table.rows) for table in report.tables)
    place = rows.index("| file | MiB | bits/weight | load ms | bytes by type |")
    assert rows[place + 1] == "|---|---:|---:|---:|---:|"
    assert rows[place + 2] == r"| model-0.gguf | 0.01 | 4.00 | 3.000 | Q4\_K 60.0 %, IQ1\_M 30.0 %, F32 10.0 % |"
    assert sum(line.startswith("**") for line in lines) == len(report.tables)
    assert sum(line.startswith("- ") for line in lines) == len(report.lines)


def test_csv_has_every_number_unrounded():
    record = make_record(2.0, 1.0, threads=(1, 2), image=True)
    rows = list(csv.DictReader(io.StringIO(format_csv(record))))
    found = speeds(record)
    assert len(rows) == len(found) == 2 * 2 * 4
    for row, speed in zip(rows, found, strict=True):
        assert tuple(row) == COLUMNS
        assert (row["phase"], int(row["threads"])) == (speed.phase, speed.threads)
        assert float(row["tokens_per_second"]) == speed.rate.median
        assert row["sha256"] == record.files[speed.file].sha256
        assert (row["ratio_to_first"] == "") == (row["verdict"] == "") == (speed.ratio is None)
        assert (row["share_of_bandwidth"] == "") == (speed.phase != "generation")
        expected = {"prompt": "IQ1_M=0.5 F32=0.25 other=0.25", "generation": "IQ1_M=0.5 other=0.4 F32=0.1"}
        assert row["time_by_type"] == expected.get(speed.phase, "")


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_plot_of_a_sweep(tmp_path: Path, suffix: str):
    path = tmp_path / f"sweep.{suffix}"
    draw_plot(make_record(2.0, 1.0, threads=(4, 1, 2), files=(make_file("$x$.gguf"), make_file("b", 1))), path)
    assert path.read_bytes()[:4] in (b"\x89PNG", b"<?xm", b"%PDF")
    if suffix == "png":
        with Image.open(path) as image:
            assert image.width > image.height > 100
    assert [left.name for left in tmp_path.iterdir()] == [path.name]


def test_plots_that_cannot_be():
    with pytest.raises(RequestError, match=r"sweep\.doc"):
        check_plot(Path("sweep.doc"), (1, 2))
    with pytest.raises(RequestError, match="two numbers of threads"):
        check_plot(Path("sweep.png"), (4,))
    check_plot(Path("sweep.PNG"), (1, 2))


def test_shares_of_types_come_from_the_header(tmp_path: Path):
    path = write_text_gguf(tmp_path / "model.gguf", Shape())
    found = describe_file(path)
    assert found.name == "model.gguf"
    assert found.bytes == path.stat().st_size
    assert found.type_bytes["F16"] + found.type_bytes["F32"] == pytest.approx(16 * found.parameters / 8, rel=0.01)
    assert list(found.type_shares) == ["F16", "F32"]
    assert sum(found.type_shares.values()) == pytest.approx(1)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=3), st.integers(1, 8), st.booleans(), st.booleans())
def test_records_round_trip(times: list[float], rounds: int, image: bool, pinned: bool):
    settings = {"cpus": (0, 3)} if pinned else {}
    record = make_record(*times, rounds=rounds, threads=(1, 3), image=image, settings=settings)
    again = BenchRecord.model_validate_json(record.model_dump_json())
    assert again == record
    assert speeds(again) == speeds(record)


def change(*places: str | int, value: Any):
    def apply(content: dict[str, Any]) -> None:
        for place in places[:-1]:
            content = content[place]
        if value is None:
            del content[places[-1]]
        else:
            content[places[-1]] = value

    return apply


BROKEN = [
    change("format", value="luq-gguf bench 2"),
    change("date", value="yesterday"),
    change("date", value="2026-01-02T03:04:05"),
    change("date", value="0001-01-01T00:00:00+12:00"),
    change("machine", value=None),
    change("machine", "physical_cores", value="8"),
    change("settings", "threads", value=[]),
    change("settings", "threads", value=[2]),
    change("settings", "prompt", value=0),
    change("settings", "prompt", value=100.5),
    change("settings", "rounds", value=7),
    change("settings", "rounds", value=100_000),
    change("settings", "generate", value=6),
    change("files", value=[]),
    change("files", 0, "sha256", value="abc"),
    change("files", 0, "type_bytes", "Q4_K", value=-1),
    change("runs", 0, "generate_ns", 0, value=0),
    change("runs", 0, "generate_ns", 0, value=10**40),
    change("runs", 0, "prompt_ns", value=[]),
    change("runs", 0, "file", value=1),
    change("runs", 0, "threads", value=True),
    change("images", 0, "encode_ns", 0, value=None),
    change("images", value=[]),
    change("bandwidth", value=[]),
    change("extra", value=1),
]


@pytest.mark.parametrize("place", range(len(BROKEN)))
def test_an_edited_record_is_one_clear_line(tmp_path: Path, place: int):
    path = tmp_path / "bench.json"
    content = json.loads(make_record(1.0, image=True).model_dump_json())
    BROKEN[place](content)
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=r"bench\.json is no valid BenchRecord") as caught:
        read_record(path, BenchRecord)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "NaN", '{"format": "luq-gguf bench 1"}'])
def test_what_is_no_record(tmp_path: Path, text: str):
    path = tmp_path / "bench.json"
    path.write_text(text)
    with pytest.raises(ArtifactError, match=r"bench\.json is no valid BenchRecord"):
        read_record(path, BenchRecord)


def test_the_same_cpu_at_two_times():
    old, new = make_record(2.0, 1.0), make_record(1.0, 1.0)
    found = compare_records(old, new)
    assert found.same_cpu
    assert [(change.file, change.phase, change.verdict) for change in found.changes] == [
        ("model-0.gguf", "prompt", "faster"),
        ("model-0.gguf", "generation", "faster"),
        ("model-1.gguf", "prompt", "no difference beyond noise"),
        ("model-1.gguf", "generation", "no difference beyond noise"),
    ]
    assert found.changes[1].ratio.median == pytest.approx(2, rel=1e-3)
    assert found.notes == ()
    assert "\nthe same CPU: Some CPU, 8 cores, 16 logical" in format_text(comparison_report(found))
    assert [change.verdict for change in compare_records(new, old).changes[:2]] == ["slower", "slower"]


def test_two_cpus():
    other = MACHINE.model_copy(update={"cpu": "Another CPU", "governor": None})
    versions = Versions(luq_gguf="0.2.0", llama_cpp_python="0.3.36", system_info="CPU : NEON = 1")
    new = make_record(1.0, machine=other, versions=versions, settings={"cpus": (0, 1)})
    found = compare_records(make_record(2.0), new)
    assert not found.same_cpu
    text = format_text(comparison_report(found))
    for line in (
        "different CPUs", "old: Some CPU, 8 cores, 16 logical", "new: Another CPU, 8 cores, 16 logical",
        "not the same: luq_gguf: 0.1.0 before, 0.2.0 now",
        "not the same: how llama.cpp was built: CPU : AVX2 = 1 before, CPU : NEON = 1 now",
        "not the same: frequency governor: performance before, None now",
        "not the same: processors it stayed on: any before, 0,1 now",
    ):  # fmt: skip
        assert line in text.splitlines()


def test_what_only_one_run_has_is_named():
    old = make_record(2.0, 1.0, threads=(1, 2))
    new = make_record(1.0, 3.0, threads=(2, 4), files=(make_file("new.gguf", 1), make_file("b.gguf", 7)))
    found = compare_records(old, new)
    assert {(change.file, change.threads) for change in found.changes} == {("model-1.gguf", 2)}
    assert found.changes[1].ratio.median == pytest.approx(1, rel=1e-3)
    assert found.notes == (
        "only in the old run: model-0.gguf",
        "only in the old run: 1 threads",
        "only in the new run: b.gguf",
        "only in the new run: 4 threads",
    )


def test_a_file_that_was_named_twice_is_compared_once():
    twice = make_record(2.0, 2.0, files=(make_file("a.gguf"), make_file("a.gguf")))
    assert len(compare_records(twice, twice).changes) == 2


def test_too_few_rounds_are_said():
    found = compare_records(make_record(2.0, rounds=3), make_record(1.0, rounds=3))
    assert {change.verdict for change in found.changes} == {"too few rounds to tell"}
    assert found.notes[-1].startswith("too few rounds to tell")


@pytest.mark.parametrize(
    ("new", "words"),
    [
        ({"settings": {"prompt": 50}}, "--prompt was 100 in one run, 50 in the other"),
        ({"settings": {"generate": 9}}, "--generate was 5 in one run, 9 in the other"),
        ({"files": (make_file("model-0.gguf", 5),)}, "no file in common, by SHA-256"),
        ({"threads": (1, 2)}, "no number of threads in common: 4 and 1,2"),
    ],
)
def test_what_was_asked_differently_is_refused(new: dict[str, Any], words: str):
    with pytest.raises(RequestError, match=words) as caught:
        compare_records(make_record(2.0), make_record(1.0, **new))
    assert caught.value.exit_code == 2


def test_written_records_are_read_back(tmp_path: Path):
    record = make_record(2.0, 1.0, image=True)
    write_record(tmp_path / "bench.json", record)
    assert read_record(tmp_path / "bench.json", BenchRecord) == record
