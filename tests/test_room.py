"""What a conversion takes of the disk, what it asks for before, and how it goes on where parts move into the result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from luq_gguf import job as job_module
from luq_gguf import pipeline, quantize, resources, room
from luq_gguf.artifacts import Plan
from luq_gguf.cost_factors import RECORD_BYTES
from luq_gguf.errors import DiskSpaceError
from luq_gguf.growing import JOURNAL, Growing
from luq_gguf.job import KEPT
from luq_gguf.making import Maker
from luq_gguf.pipeline import Conversion, Settings, convert
from luq_gguf.room import PartBytes, require_room_to_grow, require_room_to_keep, require_spaces
from tests.pico import build_pico
from tests.program import listing
from tests.test_growing import Killed

LAYERS = 10
SETTINGS = Settings(
    calib="shapes", low_type="Q2_K", low_layers=3, samples=10, threads=1, evaluate=False, keep_parts=False
)
RECORDS = RECORD_BYTES + 7 * (1 << 16)
"""What a model of this size is reckoned to leave in records, at most: the report, and what grows with the model."""
SLACK = 1 << 16
"""Blocks that files only begin, and the importance matrix."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_pico(tmp_path_factory.mktemp("checkpoints") / "Pico-VL-Instruct", layers=LAYERS)


@pytest.fixture(scope="module")
def kept(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    """A conversion that put its parts together and kept them."""
    return convert(str(checkpoint), tmp_path_factory.mktemp("kept"), replace(SETTINGS, keep_parts=True))


@pytest.fixture
def analyzed(kept: Conversion, tmp_path: Path) -> Path:
    """An output folder with the analysis alone."""
    analysis = next((kept.model.parent / ".work").glob("analysis-*"))
    shutil.copytree(analysis, tmp_path / "out" / ".work" / analysis.name)
    return tmp_path / "out"


def bytes_on_disk(*folders: Path) -> int:
    found = 0
    for folder in folders:
        for path in folder.rglob("*"):
            try:
                found += path.lstat().st_blocks * 512 if path.is_file() else 0
            except FileNotFoundError:
                continue
    return found


@dataclass
class Watch:
    """What happened in a conversion: most bytes on the disk, parts quantized, and their largest sizes."""

    folders: tuple[Path, ...]
    most: int = 0
    quantized: int = 0
    source: int = 0
    part: int = 0

    def look(self, *_: object) -> None:
        self.most = max(self.most, bytes_on_disk(*self.folders))

    @property
    def step(self) -> int:
        return self.source + self.part


@pytest.fixture
def watch(analyzed: Path, tmp_path: Path) -> Iterator[Watch]:
    """Looks after every part is quantized, with its 16-bit tensors still there, and before and after it moves."""
    seen = Watch((analyzed, tmp_path / "work"))
    original, move = quantize.quantize_gguf, Growing.move

    def quantize_gguf(source: Path, target: Path, *arguments: object, **named: object) -> None:
        original(source, target, *arguments, **named)
        seen.look()
        seen.quantized += 1
        seen.source = max(seen.source, source.stat().st_size)
        seen.part = max(seen.part, target.stat().st_size)

    def watched_move(growing: Growing, part: Path) -> None:
        seen.look()
        move(growing, part)
        seen.look()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize, "quantize_gguf", quantize_gguf)
        patch.setattr(Growing, "move", watched_move)
        yield seen


def needed(made: Conversion, watch: Watch) -> int:
    """The result, the vision part, the kept analysis, one layer in 16 bits, and its part."""
    assert made.mmproj is not None
    analysis = bytes_on_disk(*(made.model.parent / ".work").glob("analysis-*"))
    return made.plan.size_bytes + made.mmproj.stat().st_size + analysis + watch.step + SLACK


def test_parts_that_move_take_no_room_beside_the_result(
    checkpoint: Path, analyzed: Path, watch: Watch, kept: Conversion
) -> None:
    made = convert(str(checkpoint), analyzed, SETTINGS, watch.look)
    assert made.model.read_bytes() == kept.model.read_bytes()
    assert made.plan == kept.plan
    assert watch.quantized == LAYERS + 1
    assert watch.most <= needed(made, watch)
    work = analyzed / ".work"
    assert sorted(path.name.partition("-")[0] for path in work.iterdir()) == ["analysis", "imatrix.gguf", "lock"]
    assert {"assemble", "quantize", "export", "verify"} <= made.seconds.keys()


def test_parts_that_are_kept_take_as_much_as_the_result(checkpoint: Path, analyzed: Path, watch: Watch) -> None:
    made = convert(str(checkpoint), analyzed, replace(SETTINGS, keep_parts=True), watch.look)
    assert watch.most > needed(made, watch)
    assert watch.most > 2 * made.plan.size_bytes


def test_a_work_folder_of_its_own_holds_one_part_at_a_time(
    checkpoint: Path, analyzed: Path, tmp_path: Path, watch: Watch, kept: Conversion
) -> None:
    shutil.move(analyzed / ".work", tmp_path / "work")
    seen: list[int] = []

    def look(what: str, done: int, total: int) -> None:
        watch.look()
        seen.append(len(list((tmp_path / "work" / "parts").glob("*.gguf"))))

    made = convert(str(checkpoint), analyzed, replace(SETTINGS, work=tmp_path / "work"), look)
    assert made.model.read_bytes() == kept.model.read_bytes()
    assert max(seen) == 1
    assert [path.name for path in (analyzed / ".work").iterdir()] == ["lock"]
    analysis = bytes_on_disk(*(tmp_path / "work").glob("analysis-*"))
    assert watch.most <= needed(made, watch) + analysis


@pytest.mark.parametrize("parts", [0, 1, 5, LAYERS + 1])
def test_a_killed_run_quantizes_only_the_rest(
    checkpoint: Path, analyzed: Path, watch: Watch, kept: Conversion, parts: int
) -> None:
    def kill(what: str, done: int, total: int) -> None:
        if (what, done) == ("quantize", parts):
            raise Killed

    with pytest.raises(Killed):
        convert(str(checkpoint), analyzed, SETTINGS, kill)
    assert watch.quantized == parts
    assert not list(analyzed.glob("*.gguf"))
    assert not list((analyzed / ".work" / "parts").glob("*.gguf"))
    made = convert(str(checkpoint), analyzed, SETTINGS, watch.look)
    assert watch.quantized == LAYERS + 1
    assert made.model.read_bytes() == kept.model.read_bytes()
    assert watch.most <= needed(made, watch)
    assert not list((analyzed / ".work").glob("growing-*"))


def test_killed_while_a_part_was_copied_it_is_not_quantized_again(
    checkpoint: Path, analyzed: Path, watch: Watch, kept: Conversion
) -> None:
    told = []

    def kill(what: str, done: int, total: int) -> None:
        told.append(what)
        if told.count("assemble") == 30:
            raise Killed

    with pytest.raises(Killed):
        convert(str(checkpoint), analyzed, SETTINGS, kill)
    assert len(list((analyzed / ".work" / "parts").glob("*.gguf"))) == 1
    made = convert(str(checkpoint), analyzed, SETTINGS)
    assert watch.quantized == LAYERS + 1
    assert made.model.read_bytes() == kept.model.read_bytes()


@pytest.mark.parametrize("moment", ["_check", "leave_records", "finish"])
def test_killed_after_the_file_got_its_name_nothing_is_quantized_again(
    checkpoint: Path, analyzed: Path, watch: Watch, kept: Conversion, moment: str
) -> None:
    def kill(*_: object, **__: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Maker if moment == "_check" else pipeline, moment, kill)
        with pytest.raises(Killed):
            convert(str(checkpoint), analyzed, SETTINGS)
    before = listing(analyzed)[kept.model.name]
    made = convert(str(checkpoint), analyzed, SETTINGS)
    assert watch.quantized == LAYERS + 1
    assert listing(analyzed)[kept.model.name] == before
    assert made.model.read_bytes() == kept.model.read_bytes()
    assert not list((analyzed / ".work").glob("growing-*"))


def test_a_journal_that_lies_ends_in_the_same_file(
    checkpoint: Path, analyzed: Path, watch: Watch, kept: Conversion
) -> None:
    def kill(what: str, done: int, total: int) -> None:
        if (what, done) == ("quantize", 4):
            raise Killed

    with pytest.raises(Killed):
        convert(str(checkpoint), analyzed, SETTINGS, kill)
    (journal,) = (analyzed / ".work").glob(f"growing-*/{JOURNAL}")
    parts = json.loads(journal.read_text())["parts"]
    assert len(parts) == 4
    journal.write_text(journal.read_text().replace(parts[min(parts)], "0" * 64))
    made = convert(str(checkpoint), analyzed, SETTINGS)
    assert watch.quantized == LAYERS + 2
    assert made.model.read_bytes() == kept.model.read_bytes()


def test_another_budget_begins_anew_and_leaves_nothing_behind(checkpoint: Path, analyzed: Path, watch: Watch) -> None:
    def kill(what: str, done: int, total: int) -> None:
        if (what, done) == ("quantize", 4):
            raise Killed

    with pytest.raises(Killed):
        convert(str(checkpoint), analyzed, SETTINGS, kill)
    grown = watch.folders[0] / ".work"
    assert len(list(grown.glob("growing-*"))) == 1
    for settings in (replace(SETTINGS, low_layers=5), replace(SETTINGS, low_layers=4, keep_parts=True)):
        made = convert(str(checkpoint), analyzed, settings)
        assert made.model.stat().st_size == made.plan.size_bytes
        assert not list(grown.glob("growing-*"))


def test_parts_that_were_to_be_kept_stay_until_told_otherwise(
    checkpoint: Path, analyzed: Path, watch: Watch, monkeypatch
) -> None:
    monkeypatch.setattr(job_module, "SMALL_MODEL_BYTES", 0)
    parts = analyzed / ".work" / "parts"
    told = replace(SETTINGS, keep_parts=None)
    convert(str(checkpoint), analyzed, told)
    assert not parts.exists()
    convert(str(checkpoint), analyzed, replace(SETTINGS, keep_parts=True, low_layers=2))
    assert (parts / KEPT).exists()
    assert len(list(parts.glob("*.gguf"))) == LAYERS + 1
    before, quantized = set(listing(parts)), watch.quantized
    convert(str(checkpoint), analyzed, replace(told, low_layers=4))
    assert set(listing(parts)) > before
    assert watch.quantized == quantized + 2
    convert(str(checkpoint), analyzed, replace(SETTINGS, low_layers=2))
    assert watch.quantized == quantized + 2
    assert not parts.exists()


@pytest.mark.parametrize("changes", [{"sequential": True}, {"order": "damage", "samples": 30}])
def test_parts_that_were_tried_or_read_before_move_in_the_end(
    pico_checkpoint: Path, tmp_path: Path, watch: Watch, changes: dict
) -> None:
    """Killed while they move, nothing is quantized, measured, or tried again."""

    def kill(what: str, done: int, total: int) -> None:
        if (what, done) == ("quantize", 2) and list((tmp_path / "moved" / ".work").glob("growing-*")):
            raise Killed

    settings = replace(SETTINGS, low_layers=1, **changes)
    kept = convert(str(pico_checkpoint), tmp_path / "kept", replace(settings, keep_parts=True))
    alone, watch.quantized = watch.quantized, 0
    with pytest.raises(Killed):
        convert(str(pico_checkpoint), tmp_path / "moved", settings, kill)
    assert watch.quantized in {alone, alone - 1}
    made = convert(str(pico_checkpoint), tmp_path / "moved", settings)
    assert made.model.read_bytes() == kept.model.read_bytes()
    assert watch.quantized == alone
    assert not (tmp_path / "moved" / ".work" / "parts").exists()


@pytest.mark.parametrize(
    ("changes", "high", "moves"),
    [({}, 1 << 20, False), ({}, 1 << 32, True), ({"keep_parts": False}, 1 << 20, True),
     ({"keep_parts": True}, 1 << 32, False), ({"min_tps": 5.0}, 1 << 32, False)],
)  # fmt: skip
def test_parts_move_where_nothing_else_may_want_them(
    checkpoint: Path, tmp_path: Path, changes: dict, high: int, moves: bool
) -> None:
    job = pipeline.open_job(str(checkpoint), tmp_path, Settings(**changes), lambda *_: None)
    assert job.moves_parts(high) is moves


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """Bytes that were asked for on the one disk, in the order of the questions."""
    found: list[int] = []
    for module in (resources, room):
        monkeypatch.setattr(module, "require_space", lambda folder, count, what: found.append(count))
    return found


def test_it_asks_for_what_it_takes(
    checkpoint: Path, analyzed: Path, watch: Watch, kept: Conversion, asked: list[int]
) -> None:
    made = convert(str(checkpoint), analyzed, SETTINGS, watch.look)
    watch.look()
    analysis = bytes_on_disk(*(analyzed / ".work").glob("analysis-*"))
    taken = watch.most - analysis
    assert len(asked) == 2
    for count in asked:
        assert made.plan.size_bytes < count
    assert taken - 2 * SLACK <= asked[0] <= taken + watch.part + RECORDS
    assert asked[1] < made.plan.size_bytes + watch.step


def test_kept_parts_are_asked_for_once(checkpoint: Path, analyzed: Path, watch: Watch, asked: list[int]) -> None:
    keeping = replace(SETTINGS, keep_parts=True)
    first = convert(str(checkpoint), analyzed, keeping)
    size = first.plan.size_bytes
    assert asked[0] > 2 * size
    assert 2 * size - SLACK < asked[1] < 2 * size + watch.source + SLACK
    del asked[:]
    second = convert(str(checkpoint), analyzed, replace(keeping, low_layers=4))
    one_layer = watch.part + watch.source
    assert second.plan.size_bytes < asked[1] < second.plan.size_bytes + one_layer
    assert asked[0] < size + one_layer + watch.step + 2 * SLACK + first.mmproj.stat().st_size


def test_what_has_grown_is_not_asked_for_again(
    checkpoint: Path, analyzed: Path, watch: Watch, asked: list[int]
) -> None:
    def kill(what: str, done: int, total: int) -> None:
        if (what, done) == ("quantize", 8):
            raise Killed

    with pytest.raises(Killed):
        convert(str(checkpoint), analyzed, SETTINGS, kill)
    first = asked.copy()
    del asked[:]
    made = convert(str(checkpoint), analyzed, SETTINGS)
    assert asked[0] < first[0] - made.plan.size_bytes / 2
    assert asked[1] < first[1] - made.plan.size_bytes / 2


PARTS = [PartBytes(10, 40, True), PartBytes(20, 80, False), PartBytes(5, 20, False)]


def test_room_to_keep_is_the_result_what_is_missing_and_one_layer(tmp_path: Path, asked: list[int]) -> None:
    require_room_to_keep(tmp_path / "x.gguf", 35, tmp_path / "parts", PARTS)
    require_room_to_keep(tmp_path / "x.gguf", 35, tmp_path / "parts", PARTS[:1])
    assert asked == [35 + 25 + 80, 35]


def test_room_to_grow_is_the_result_and_the_largest_step(tmp_path: Path, asked: list[int]) -> None:
    require_room_to_grow(tmp_path / "x.gguf", tmp_path / "parts", PARTS)
    require_room_to_grow(tmp_path / "x.gguf", tmp_path / "parts", PARTS[:1])
    require_room_to_grow(tmp_path / "x.gguf", tmp_path / "parts", [])
    assert asked == [35 + 100 - 10, 10, 0]


def test_folders_on_two_disks_are_asked_each(tmp_path: Path, monkeypatch) -> None:
    disk = Path("/dev/shm")
    if not disk.is_dir() or disk.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one disk only")
    free = {disk / "no" / "folder": 5, tmp_path / "out" / "x": 9, tmp_path: 2}
    told: list[tuple[Path, int]] = []
    monkeypatch.setattr(room, "require_space", lambda folder, count, what: told.append((folder, count)))
    require_spaces(free, "work")
    assert told == [(disk / "no" / "folder", 5), (tmp_path / "out" / "x", 11)]


def test_a_disk_that_is_too_small_is_refused_before_any_work(checkpoint: Path, analyzed: Path, monkeypatch) -> None:
    """What the parts of a plan take is known to the byte once it is chosen, also with some of them there."""
    usage = type("Usage", (), {"free": 3 << 20})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(DiskSpaceError, match="converting Pico-VL-Instruct needs"):
        convert(str(checkpoint), analyzed, SETTINGS)
    assert not (analyzed / ".work" / "parts").exists()


def test_the_plan_says_what_its_parts_take(checkpoint: Path, analyzed: Path, kept: Conversion) -> None:
    sizes: list[PartBytes] = []
    original = Maker._bytes_of

    def listen(maker: Maker, groups: dict[Path, list[str]], plan: Plan) -> list[PartBytes]:
        sizes.extend(original(maker, groups, plan))
        return original(maker, groups, plan)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Maker, "_bytes_of", listen)
        convert(str(checkpoint), analyzed, replace(SETTINGS, keep_parts=True))
    parts = [path.stat().st_size for path in (analyzed / ".work" / "parts").glob("*.gguf")]
    assert len(sizes) == LAYERS + 1
    assert not any(each.is_there for each in sizes)
    headers = sum(parts) - sum(each.quantized for each in sizes)
    assert 0 < headers < 3000 * len(parts)
