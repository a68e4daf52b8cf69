"""What `import luq_gguf` offers: the whole path from Python, what notebooks show, and what stops it."""

from __future__ import annotations

import dataclasses
import json
import pkgutil
import subprocess
import sys
import threading
import typing
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

import luq_gguf
from luq_gguf import activations, api
from luq_gguf.artifacts import LayerScores, Plan, read_record, sha256_of
from luq_gguf.bench_record import BenchRecord
from luq_gguf.bench_report import report_of
from luq_gguf.bench_run import BenchRequest
from luq_gguf.entropy import measure_entropy
from luq_gguf.errors import ArtifactError, BudgetError, BusyError, CheckpointError, LuqError, RequestError, RunError
from luq_gguf.failures import luq_errors
from luq_gguf.job import Settings
from luq_gguf.pipeline import Conversion
from luq_gguf.progress import silent
from luq_gguf.quality import EvaluationRequest
from luq_gguf.runtime import Runtime
from tests.program import Run, listing, result_of

MEASURED: api.CalibrationOptions = {"calib": "shapes", "samples": 10}
SMALL: api.ConvertOptions = {"calib": "shapes", "samples": 10, "low_type": "Q2_K", "low_layers": 1, "threads": 1}
"""What the session's conversion by the program is made with."""
HOSTILE = "<img src=x onerror=alert(1)> & \"'\u202e\x1b[31m"


@dataclasses.dataclass(frozen=True)
class Chain:
    """What one walk through all functions gave, and what the listener heard of the conversion."""

    out: Path
    analysis: api.Analysis
    planned: api.Planned
    converted: Conversion
    evaluations: api.Evaluations
    record: BenchRecord
    heard: tuple[tuple[str, int, int], ...]


@pytest.fixture(scope="module")
def chain(pico_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    out = tmp_path_factory.mktemp("chain")
    heard: list[tuple[str, int, int]] = []
    listen = lambda *said: heard.append(said)  # noqa: E731
    analysis = luq_gguf.analyze(pico_checkpoint, out, progress=listen, **MEASURED)
    planned = luq_gguf.plan(analysis, low_layers=1, low_type="Q2_K")
    converted = luq_gguf.convert(pico_checkpoint, out, progress=listen, **SMALL)
    evaluations = luq_gguf.evaluate(converted.model, mmproj=converted.mmproj, reference=out, threads=1)
    record = luq_gguf.benchmark([converted.model, str(converted.model)], prompt=4, generate=2, rounds=2, threads=1)
    return Chain(out, analysis, planned, converted, evaluations, record, tuple(heard))


def test_the_path_from_python_gives_what_the_program_gives(chain: Chain, converted: Run) -> None:
    wanted = result_of(converted)
    made = chain.converted
    assert made.model.read_bytes() == Path(wanted["model"]).read_bytes()
    assert made.mmproj is not None
    assert made.mmproj.read_bytes() == Path(wanted["mmproj"]).read_bytes()
    said = json.loads(json.dumps(made.as_json()))
    for key in ("size_bytes", "bits_per_weight", "low_layers", "order", "entropy", "types", "quality"):
        assert said[key] == wanted[key]


def test_each_step_goes_on_from_the_one_before(chain: Chain) -> None:
    assert chain.analysis.scores == read_record(chain.out / "scores.json", LayerScores)
    assert chain.planned.plan == read_record(chain.out / "plan.json", Plan)
    assert chain.planned.plan.size_bytes == chain.converted.model.stat().st_size
    assert "analyze" not in chain.converted.seconds
    (found,) = chain.evaluations
    assert chain.converted.quality is not None
    assert found.quality is not None
    assert found.quality.groups == chain.converted.quality.groups
    assert [file.sha256 for file in chain.record.files] == [sha256_of(chain.converted.model)] * 2
    assert luq_gguf.plan(str(chain.out), max_size=chain.planned.plan.size_bytes, low_type="Q2_K").plan.low_layers


def test_what_was_made_answers(chain: Chain) -> None:
    model, mmproj = chain.converted.model, chain.converted.mmproj
    with Runtime(model, mmproj, threads=1) as runtime:
        wanted = runtime.answer("How many?", max_tokens=5)
    llama = luq_gguf.open_model(model, mmproj, context=512, n_threads=1, n_threads_batch=1)
    try:
        reply = llama.create_chat_completion(
            [{"role": "user", "content": "How many?"}], temperature=0, repeat_penalty=1.0, max_tokens=5
        )
    finally:
        llama.close()
    assert wanted
    assert reply["choices"][0]["message"]["content"].strip() == wanted


def test_sizes_are_those_of_plans(pico_checkpoint: Path, chain: Chain) -> None:
    table = luq_gguf.sizes(str(pico_checkpoint), low_type="Q2_K")
    assert table.sizes[0] == chain.planned.plan.high_size_bytes
    assert len(table.sizes) == 4
    with pytest.raises(RequestError, match="holds no analysis"):
        luq_gguf.plan(pico_checkpoint)


def test_a_size_and_a_share_may_be_text(chain: Chain) -> None:
    all_high = chain.planned.plan.high_size_bytes
    by_text = luq_gguf.plan(chain.out, max_size=f"{(all_high - 1) / 2**10:.4f} KiB", low_type="Q2_K")
    by_number = luq_gguf.plan(chain.out, max_size=all_high - 1, low_type="Q2_K")
    assert by_text == by_number
    assert len(by_text.plan.low_layers) == 1
    assert luq_gguf.plan(chain.out, max_size="3.4GiB").plan.low_layers == ()
    with pytest.raises(BudgetError) as refused:
        luq_gguf.plan(chain.out, max_size="1KB")
    assert refused.value.nearest_bytes > 1000
    with pytest.raises(RequestError, match="measured"):
        luq_gguf.plan(chain.out, max_drop="10%")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"low_layers": "four"}, "low_layers is 'four'; input should be a valid integer"),
        ({"low_layers": -1}, "low-layers is -1"),
        ({"samples": 0}, "samples is 0"),
        ({"threads": -2}, "threads is -2"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"max_size": "much"}, "'much' is no size"),
        ({"max_size": "9" * 500 + "GiB1"}, "is no size"),
        ({"max_drop": "a bit"}, "'a bit' is no share"),
        ({"max_drop": 2.0}, "max-drop is 200%"),
        ({"work": 7}, "work is 7"),
        ({"imatrix": "matrix.dat"}, "imatrix is 'matrix.dat'"),
        ({"order": "alphabet"}, "unknown order 'alphabet'"),
        ({"low_type": "Q9"}, "Q9"),
    ],
)
def test_a_value_that_cannot_be_is_named_before_anything_is_done(
    pico_checkpoint: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(RequestError) as refused:
        luq_gguf.convert(pico_checkpoint, tmp_path / "out", **options)
    assert words in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_an_unknown_option_is_a_type_error_as_everywhere_in_python(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"convert\(\) got an unexpected keyword argument 'max_szie'"):
        luq_gguf.convert("model", tmp_path, max_szie="3GiB")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"plan\(\) got an unexpected keyword argument 'bundle'"):
        luq_gguf.plan(tmp_path, bundle=True)  # type: ignore[call-arg]


def test_errors_are_luq_errors(pico_checkpoint: Path, chain: Chain, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file"):
        luq_gguf.convert(pico_checkpoint, tmp_path / "file" / "out", **SMALL)
    with pytest.raises(CheckpointError):
        luq_gguf.analyze(tmp_path, tmp_path / "out")
    with pytest.raises(ArtifactError):
        luq_gguf.evaluate([chain.converted.model], reference=tmp_path)
    with pytest.raises(RequestError, match="nothing to judge by"):
        luq_gguf.evaluate([chain.converted.model])
    with pytest.raises(RequestError, match="prompt"):
        luq_gguf.benchmark(chain.converted.model, prompt=0)
    with pytest.raises(LuqError):
        luq_gguf.benchmark(tmp_path / "nowhere.gguf")


def test_errors_of_libraries_are_chained_and_those_of_the_listener_its_own() -> None:
    with pytest.raises(RunError, match="unexpected ValueError: odd") as wrapped, luq_errors(silent):
        raise ValueError("odd")
    assert isinstance(wrapped.value.__cause__, ValueError)
    with pytest.raises(RunError, match="out of memory"), luq_errors(silent):
        raise MemoryError
    with pytest.raises(KeyboardInterrupt), luq_errors(silent):
        raise KeyboardInterrupt
    mine = OSError("the listener's")

    def refuse(what: str, done: int, total: int) -> None:
        raise mine

    with pytest.raises(OSError) as passed, luq_errors(refuse) as listen:  # noqa: PT011 - it is the very same
        listen("stage", 0, 1)
    assert passed.value is mine


def test_the_listener_hears_every_stage_to_its_end(chain: Chain) -> None:
    stages: dict[str, list[tuple[int, int]]] = {}
    for what, done, total in chain.heard:
        stages.setdefault(what, []).append((done, total))
    assert {"analyze", "quantize", "assemble", "judge answers"} <= stages.keys()
    for said in stages.values():
        assert all(0 <= done <= total for done, total in said)
    for name in ("quantize", "judge answers"):
        assert [done for done, _ in stages[name]] == sorted(done for done, _ in stages[name])
        assert stages[name][-1][0] == stages[name][-1][1] > 0


class StopError(Exception):
    """What a listener raises that has seen enough."""


@pytest.mark.parametrize("kind", [KeyboardInterrupt, StopError])
def test_a_listener_that_raises_leaves_nothing_half_written(
    pico_checkpoint: Path, chain: Chain, tmp_path: Path, kind: type[BaseException]
) -> None:
    """Every stage is stopped once, and the run after it goes on until the next."""
    out, reached = tmp_path / "out", list[str]()

    def stop(what: str, done: int, total: int) -> None:
        if what not in reached and (done or total == 1):
            reached.append(what)
            raise kind(what)

    stages = dict.fromkeys(what for what, _, _ in chain.heard)
    for _ in stages:
        with pytest.raises(kind):
            luq_gguf.convert(pico_checkpoint, out, progress=stop, **SMALL)
        assert not list(tmp_path.rglob("*.partial"))
        assert not (out / "manifest.json").exists()
        for file in out.glob("*.gguf"):
            assert file.read_bytes() == (chain.out / file.name).read_bytes()
    assert sorted(reached) == sorted(stages)
    made = luq_gguf.convert(pico_checkpoint, out, progress=stop, **SMALL)
    assert made.model.read_bytes() == chain.converted.model.read_bytes()
    before = listing(out)
    assert luq_gguf.convert(pico_checkpoint, out, **SMALL).plan == made.plan
    assert listing(out) == before


def test_nothing_is_printed(pico_checkpoint: Path, chain: Chain, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    luq_gguf.convert(pico_checkpoint, tmp_path, work=chain.out / ".work", **SMALL)
    luq_gguf.evaluate(chain.converted.model, mmproj=chain.converted.mmproj, reference=chain.out, threads=1)
    assert capfd.readouterr() == ("", "")


def side_by_side(*calls: Callable[[], Any]) -> list[Any]:
    """What calls in threads of their own gave or raised."""
    found: list[Any] = [None] * len(calls)

    def call(place: int) -> None:
        try:
            found[place] = calls[place]()
        except LuqError as error:
            found[place] = error

    threads = [threading.Thread(target=call, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_two_threads_may_work_in_two_folders(pico_checkpoint: Path, chain: Chain, tmp_path: Path) -> None:
    def make(name: str) -> Callable[[], Conversion]:
        return lambda: luq_gguf.convert(pico_checkpoint, tmp_path / name, **SMALL)

    for made in side_by_side(make("one"), make("two")):
        assert made.model.read_bytes() == chain.converted.model.read_bytes()
        assert made.quality == chain.converted.quality


def test_in_one_folder_the_second_is_refused(pico_checkpoint: Path, chain: Chain, tmp_path: Path) -> None:
    inside, done = threading.Event(), threading.Event()

    def wait(what: str, _done: int, _total: int) -> None:
        inside.set()
        done.wait(60)

    def second() -> Any:
        assert inside.wait(60)
        try:
            return luq_gguf.plan(tmp_path, low_layers=1)
        finally:
            done.set()

    luq_gguf.analyze(pico_checkpoint, tmp_path, work=chain.out / ".work", **MEASURED)
    made, refused = side_by_side(lambda: luq_gguf.convert(pico_checkpoint, tmp_path, progress=wait, **SMALL), second)
    assert isinstance(refused, BusyError)
    assert made.model.read_bytes() == chain.converted.model.read_bytes()


def test_two_threads_may_judge_the_same_file(chain: Chain, tmp_path: Path) -> None:
    def judge() -> api.Evaluations:
        return luq_gguf.evaluate(
            chain.converted.model, mmproj=chain.converted.mmproj, reference=chain.out, threads=1, work=tmp_path
        )

    assert side_by_side(judge, judge, judge) == [chain.evaluations] * 3


class Page(HTMLParser):
    """The tags, attributes and texts of a page, and the cells of its tables by row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.names: set[str] = set()
        self.rows: list[list[str]] = []
        self.text = ""
        self._in_cell = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_cell:
            self.rows[-1][-1] += data


def page_of(result: Any) -> Page:
    page = Page(result._repr_html_())
    assert page.tags <= {"table", "caption", "thead", "tbody", "tr", "th", "td", "p", "br"}
    assert page.names <= {"style"}
    return page


def test_a_notebook_shows_the_entropies(chain: Chain) -> None:
    rows = page_of(chain.analysis).rows[1:]
    assert len(rows) == chain.analysis.scores.layers == 3
    for row, each in zip(rows, chain.analysis.scores.entropy["output_multimodal"], strict=True):
        assert row[1] == f"{each.mean:.3f} ±{each.spread:.3f}"


def test_a_notebook_shows_the_type_of_every_weight(chain: Chain) -> None:
    page, plan = page_of(chain.planned), chain.planned.plan
    heading, *rows = page.rows
    shown = {
        f"blk.{int(row[0].removesuffix(' low'))}.{name}.weight": kind
        for row in rows
        for name, kind in zip(heading[1:], row[1:], strict=True)
    }
    outside = {name: kind for name, kind in plan.types.items() if not name.startswith("blk.") and kind != "F32"}
    assert shown | outside == {name: kind for name, kind in plan.types.items() if kind != "F32"}
    assert [int(row[0].removesuffix(" low")) for row in rows if "low" in row[0]] == list(plan.low_layers)
    assert f"{plan.size_bytes:,} bytes" in page.text
    for name, kind in outside.items():
        assert f"{name.removesuffix('.weight')} {kind}" in page.text


def test_a_notebook_shows_what_was_made_and_how_good_it_is(chain: Chain) -> None:
    page, made = page_of(chain.converted), chain.converted
    layers = [row for row in page.rows if row[0].isdigit()]
    assert [row[-1] for row in layers] == [f"{count:,}" for count in made.layer_bytes]
    assert [row[-2] for row in layers].count("Q2_K") == 1
    assert made.quality is not None
    for shown in (page, page_of(made.quality), page_of(chain.evaluations), page_of(chain.evaluations[0])):
        (divergence,) = (row for row in shown.rows if row[0].startswith("KL"))
        assert divergence[1].split()[0] == f"{made.quality.all.divergence:.4f}"
    assert str(made.model) in page.text
    gone = page_of(dataclasses.replace(made, imatrix_path=chain.out / "gone.gguf"))
    assert "importance: 0 of" in page.text
    assert (gone.rows, "importance" in gone.text) == (page.rows, False)


def test_a_notebook_shows_speeds_and_sizes(chain: Chain, pico_checkpoint: Path) -> None:
    report = report_of(chain.record)
    rows = [list(row) for table in report.tables for row in (table.columns, *table.rows)]
    assert page_of(chain.record).rows == rows
    table = luq_gguf.sizes(pico_checkpoint)
    assert [row[1] for row in page_of(table).rows[1:]] == [f"{size:,}" for size in table.sizes]


def test_names_from_strangers_are_only_shown(chain: Chain, pico_checkpoint: Path) -> None:
    assert chain.converted.quality is not None
    scores = chain.analysis.scores.model_copy(update={"warnings": (HOSTILE,), "compute_type": HOSTILE})
    plan = chain.planned.plan.model_copy(update={"order_name": HOSTILE, "notes": (HOSTILE,)})
    quality = chain.converted.quality.model_copy(update={"reference": HOSTILE})
    file = chain.record.files[0].model_copy(update={"name": HOSTILE})
    hostile = (
        scores,
        plan,
        quality,
        chain.evaluations[0].model_copy(update={"model": HOSTILE}),
        chain.record.model_copy(update={"files": (file, file)}),
        dataclasses.replace(chain.converted, model=chain.out / HOSTILE, unmeasured=HOSTILE, quality=None),
        dataclasses.replace(luq_gguf.sizes(pico_checkpoint), model=HOSTILE),
    )
    for result in hostile:
        assert "<img src=x onerror=alert(1)> & \"'\\u202e\\x1b[31m" in page_of(result).text


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, luq_gguf\n"
        "own = {name for name in sys.modules if name.startswith('luq_gguf.')}\nassert not own, own\n"
        "assert 'numpy' not in sys.modules\n"
        "for name in luq_gguf.__all__:\n    getattr(luq_gguf, name)\n"
        "names = {'torch', 'transformers', 'llama_cpp', 'sklearn', 'matplotlib', 'pyarrow', 'rich', 'typer'}\n"
        "heavy = names & set(sys.modules)\nassert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_names_are_free_for_functions_whatever_was_imported_before(chain: Chain) -> None:
    modules = {module.name for module in pkgutil.iter_modules(luq_gguf.__path__)}
    assert not modules & set(luq_gguf.__all__)
    assert set(luq_gguf.__all__) <= set(dir(luq_gguf))
    for name in ("analyze", "benchmark", "convert", "evaluate", "open_model", "plan", "sizes"):
        assert callable(getattr(luq_gguf, name))
    with pytest.raises(AttributeError, match="train"):
        luq_gguf.train  # noqa: B018


@pytest.mark.parametrize(
    ("options", "request_kind", "more"),
    [
        (api.ConvertOptions, Settings, set()),
        (api.EvaluateOptions, EvaluationRequest, {"models"}),
        (api.BenchmarkOptions, BenchRequest, {"files"}),
    ],
)
def test_options_are_the_fields_of_what_they_make(options: Any, request_kind: Any, more: set[str]) -> None:
    offered, wanted = typing.get_type_hints(options), typing.get_type_hints(request_kind)
    assert offered.keys() | more == wanted.keys()
    for name, kind in offered.items():
        assert members(wanted[name]) <= members(kind), name


def members(kind: Any) -> set[Any]:
    """The types that a union holds; any sequence stands for a tuple."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return {(Sequence, item) for item in arguments[:1]}
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return {(Sequence, item) for item in members(arguments[0])}
    return {found for each in arguments for found in members(each)} if arguments else {kind}


def test_the_threads_that_are_given_are_those_of_the_analysis(
    pico_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: set[tuple[int, int]] = set()

    def measure(vectors: Any, *, threads: int) -> Any:
        used.add((threads, torch.get_num_threads()))
        return measure_entropy(vectors, threads=threads)

    monkeypatch.setattr(activations, "measure_entropy", measure)
    before = torch.get_num_threads()
    luq_gguf.analyze(pico_checkpoint, tmp_path, calib="shapes", samples=10, threads=before + 1)
    assert used == {(before + 1, before + 1)}
