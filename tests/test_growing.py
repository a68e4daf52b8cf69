"""A file that grows out of its parts has the bytes of one put together, whatever happens to it in between."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Q

from luq_gguf import growing as module
from luq_gguf.artifacts import Plan
from luq_gguf.assemble import Blueprint, assemble, header_bytes
from luq_gguf.errors import ArtifactError, DiskSpaceError
from luq_gguf.export import export_text
from luq_gguf.families import find_family
from luq_gguf.gguf_file import GGUFFile
from luq_gguf.growing import JOURNAL, Growing, bytes_grown, drop_growing
from luq_gguf.importance import ImatrixNote
from luq_gguf.layout import part_names
from luq_gguf.planning import PlanInputs, make_mixed_plan
from luq_gguf.quantize import make_part, resolve_types, tensor_specs
from luq_gguf.quantizer import Quantizer
from tests.test_assemble import Model, make_model, types_of


class Killed(BaseException):
    """Nothing in the program handles it, as nothing handles SIGKILL."""


@dataclass(frozen=True)
class Made:
    """A plan with its parts by key, and the bytes of the file that is put together from them."""

    model: Model
    plan: Plan
    parts: dict[str, Path]
    names: dict[str, list[str]]
    expected: bytes

    @property
    def blueprint(self) -> Blueprint:
        return Blueprint.draw(self.model.header, self.plan, ImatrixNote.of(self.model.imatrix))

    def open(self, out: Path, name: str = "made.gguf") -> Growing:
        return Growing.open(out / name, self.blueprint, self.names)

    def move(self, growing: Growing, keys: list[str]) -> None:
        """Move a copy of each part; none of them stays."""
        folder = growing.target.parent / "parts"
        folder.mkdir(exist_ok=True)
        for key in keys:
            part = Path(shutil.copyfile(self.parts[key], folder / self.parts[key].name))
            growing.move(part)
            assert not part.exists()

    def finish(self, out: Path) -> Path:
        """Go on with what is there, with the parts that are missing."""
        growing = self.open(out)
        self.move(growing, [key for key in self.parts if key not in growing.held])
        growing.finish()
        assert growing.target.read_bytes() == self.expected
        assert [path.name for path in growing.folder.iterdir()] == [JOURNAL]
        return growing.target


def made_of(model: Model, plan: Plan, folder: Path, quantizer: Quantizer) -> Made:
    family = find_family(model.checkpoint.config)
    parts, names = {}, {}
    for number, group in enumerate(part_names(plan)):
        part = folder / f"part{number}.gguf"

        def export(path: Path, group: list[str] = group) -> None:
            export_text(model.checkpoint, family, path, select=set(group).__contains__, tokenizer=False)

        make_part(export, part, types_of(plan), model.imatrix, high_type=plan.high_type, quantizer=quantizer)
        parts[part.stem], names[part.stem] = part, group
    target = folder / "expected.gguf"
    assemble(list(parts.values()), model.header, plan, target, imatrix=ImatrixNote.of(model.imatrix))
    return Made(model, plan, parts, names, target.read_bytes())


def mixture(model: Model, quantizer: Quantizer) -> Plan:
    """A mixed plan: a type for some groups of two layers, and for the embeddings."""
    base = GGUFFile.open(model.header)
    resolved = resolve_types(model.header, "Q4_K_M", "IQ1_M", quantizer=quantizer)
    inputs = PlanInputs("c", "Q4_K_M", "IQ1_M", "mix", resolved.high_fallbacks, base.data_end)
    size = header_bytes(base, "Q4_K_M", ImatrixNote.of(model.imatrix))
    types = {"blk.0.attn_q.weight": Q.Q2_K, "blk.0.ffn_down.weight": Q.Q3_K, "blk.2.attn_v.weight": Q.Q6_K}
    return make_mixed_plan(tensor_specs(base, resolved), size, 3, types | {"token_embd.weight": Q.Q5_K}, inputs)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=["layers", "mixture"])
def made(request, model: Model, quantizer: Quantizer, tmp_path_factory) -> Made:
    plan = mixture(model, quantizer) if request.param == "mixture" else model.plan("Q2_K", "Q4_K_M", 1, quantizer)
    return made_of(model, plan, tmp_path_factory.mktemp(request.param), quantizer)


@pytest.mark.parametrize("seed", range(4))
def test_it_has_the_bytes_of_a_file_put_together_whatever_the_order_of_its_parts(
    made: Made, tmp_path: Path, seed: int
) -> None:
    keys = list(made.parts)
    random.Random(seed).shuffle(keys)
    growing = made.open(tmp_path)
    made.move(growing, keys)
    assert not growing.target.exists()
    growing.finish()
    assert growing.target.read_bytes() == made.expected
    assert len(made.expected) == made.plan.size_bytes


def test_it_goes_on_after_every_part(made: Made, tmp_path: Path) -> None:
    keys = list(made.parts)
    for count in range(len(keys) + 1):
        growing = made.open(tmp_path)
        assert list(growing.held) == keys[:count]
        made.move(growing, keys[count : count + 1])
    made.finish(tmp_path)


def test_the_progress_is_in_bytes_and_goes_on_too(made: Made, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    keys = list(made.parts)
    made.move(made.open(tmp_path), keys[:1])
    growing = Growing.open(tmp_path / "made.gguf", made.blueprint, made.names, lambda *told: seen.append(told))
    made.move(growing, keys[1:])
    total = sum(tensor.nbytes for tensor in made.blueprint.tensors.values())
    first = sum(made.blueprint.tensors[name].nbytes for name in made.names[keys[0]])
    assert {(what, most) for what, _, most in seen} == {("assemble", total)}
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})
    assert seen[0][1] > first
    assert seen[-1][1] == total


def test_killed_before_a_part_was_noted_it_is_still_there(made: Made, tmp_path: Path, monkeypatch) -> None:
    def kill(*_) -> None:
        raise Killed

    growing, key = made.open(tmp_path), list(made.parts)[1]
    part = Path(shutil.copyfile(made.parts[key], tmp_path / made.parts[key].name))
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_record", kill)
        with pytest.raises(Killed):
            growing.move(part)
    assert part.read_bytes() == made.parts[key].read_bytes()
    assert made.open(tmp_path).held == {}
    made.finish(tmp_path)


def test_killed_before_a_noted_part_went_it_goes_next_time(made: Made, tmp_path: Path, monkeypatch) -> None:
    def kill(*_, **__) -> None:
        raise Killed

    growing, key = made.open(tmp_path), list(made.parts)[1]
    part = Path(shutil.copyfile(made.parts[key], tmp_path / made.parts[key].name))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", kill)
        with pytest.raises(Killed):
            growing.move(part)
    again = made.open(tmp_path)
    assert list(again.held) == [key]
    again.move(part)
    assert not part.exists()
    made.finish(tmp_path)


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as handle:
        handle.seek(place)
        (byte,) = handle.read(1)
        handle.seek(place)
        handle.write(bytes([byte ^ 1]))


def cut(path: Path, size: int) -> None:
    with path.open("r+b") as handle:
        handle.truncate(size)


def lie(growing: Growing, kind: str) -> None:
    """Make a journal say what is not so, or nothing."""
    path = growing.folder / JOURNAL
    said = json.loads(path.read_text())
    parts = said["parts"]
    first, second, *_ = parts
    absent = next(key for key in growing.parts if key not in parts)
    texts = {
        "cut journal": path.read_text()[:-20],
        "empty journal": "",
        "other version": json.dumps(said | {"format": "luq-gguf growing 2"}),
        "unknown part": json.dumps(said | {"parts": parts | {"unknown": parts[first]}}),
        "part that is not there": json.dumps(said | {"parts": parts | {absent: parts[first]}}),
        "swapped parts": json.dumps(said | {"parts": {first: parts[second], second: parts[first]}}),
    }
    path.write_text(texts[kind])


def damage(growing: Growing, kind: str) -> None:
    """Change a growing file behind its journal, or do away with one of both."""
    tensor = growing.blueprint.tensors[growing.parts[list(growing.held)[1]][0]]
    if kind == "byte of a tensor":
        flip(growing.file, tensor.offset + tensor.nbytes // 2)
    elif kind == "byte of the header":
        flip(growing.file, 100)
    elif kind == "cut file":
        cut(growing.file, tensor.offset + 5)
    elif kind == "empty file":
        cut(growing.file, 0)
    elif kind == "longer file":
        cut(growing.file, growing.blueprint.size_bytes + 5)
    elif kind == "no file":
        growing.file.unlink()
    elif kind == "no journal":
        (growing.folder / JOURNAL).unlink()
    else:
        lie(growing, kind)


@pytest.mark.parametrize(
    "kind",
    ["cut journal", "empty journal", "no journal", "other version", "unknown part", "part that is not there",
     "swapped parts", "byte of a tensor", "byte of the header", "cut file", "longer file", "empty file", "no file"],
)  # fmt: skip
def test_what_does_not_prove_to_be_there_is_made_again(made: Made, tmp_path: Path, kind: str) -> None:
    growing, keys = made.open(tmp_path), list(made.parts)
    made.move(growing, keys[:3])
    damage(growing, kind)
    held = list(made.open(tmp_path).held)
    if kind in {"unknown part", "part that is not there", "byte of the header", "longer file"}:
        assert held == keys[:3]
    elif kind == "byte of a tensor":
        assert held == [keys[0], keys[2]]
    elif kind == "swapped parts":
        assert held == []
    else:
        assert keys[1] not in held
    made.finish(tmp_path)


def test_a_finished_file_is_known_again_and_left_alone(made: Made, tmp_path: Path) -> None:
    target = made.finish(tmp_path)
    before = target.stat()
    again = made.open(tmp_path)
    assert again.held.keys() == made.parts.keys()
    again.finish()
    assert (target.stat().st_ino, target.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert not again.file.exists()


@pytest.mark.parametrize("kind", ["header", "tensor", "cut", "gone"])
def test_a_finished_file_that_was_changed_is_made_again(made: Made, tmp_path: Path, kind: str) -> None:
    target = made.finish(tmp_path)
    if kind == "gone":
        target.unlink()
    elif kind == "cut":
        target.write_bytes(made.expected[:-32])
    else:
        flip(target, 100 if kind == "header" else made.plan.size_bytes - 100)
    left = target.read_bytes() if target.exists() else None
    growing = made.open(tmp_path)
    assert growing.held == {}
    assert (target.read_bytes() if target.exists() else None) == left
    made.finish(tmp_path)


def test_another_plan_begins_anew_and_drops_it(made: Made, model: Model, tmp_path: Path, quantizer: Quantizer) -> None:
    growing, keys = made.open(tmp_path), list(made.parts)
    made.move(growing, keys[:2])
    (tmp_path / ".work" / "analysis-1").mkdir()
    plan = model.plan("Q3_K", "Q4_K_M", 2, quantizer)
    (tmp_path / "other").mkdir()
    other = made_of(model, plan, tmp_path / "other", quantizer)
    begun = other.open(tmp_path)
    assert begun.held == {}
    assert sorted(path.name for path in (tmp_path / ".work").iterdir()) == ["analysis-1", begun.folder.name]
    other.finish(tmp_path)
    drop_growing(tmp_path)
    assert [path.name for path in (tmp_path / ".work").iterdir()] == ["analysis-1"]


def test_the_same_parts_under_other_keys_are_another_file(made: Made, tmp_path: Path) -> None:
    """The key of a part is made of its weights' importance, which the header and the types do not show."""
    growing, keys = made.open(tmp_path), list(made.parts)
    made.move(growing, keys[:2])
    renamed = {f"x{key}": names for key, names in made.names.items()}
    assert Growing.open(tmp_path / "made.gguf", made.blueprint, renamed).held == {}
    assert not growing.folder.exists()


def test_a_foreign_part_is_named_and_stays(made: Made, model: Model, tmp_path: Path, quantizer: Quantizer) -> None:
    growing, keys = made.open(tmp_path), list(made.parts)
    (tmp_path / "other").mkdir()
    other = made_of(model, model.plan("IQ2_XXS", "Q8_0", 3, quantizer), tmp_path / "other", quantizer)
    foreign = tmp_path / f"{keys[-1]}.gguf"
    for source, message in ((other.parts["part3"], "wanted is"), (made.parts[keys[0]], "no part holds")):
        shutil.copyfile(source, foreign)
        with pytest.raises(ArtifactError, match=message):
            growing.move(foreign)
        assert foreign.exists()
        assert growing.held == {}
    made.finish(tmp_path)


def test_its_bytes_on_the_disk_are_known(made: Made, tmp_path: Path) -> None:
    assert bytes_grown(tmp_path) == 0
    growing, keys = made.open(tmp_path), list(made.parts)
    grown = [bytes_grown(tmp_path)]
    for key in keys:
        made.move(growing, [key])
        grown.append(bytes_grown(tmp_path))
    assert grown == sorted(grown)
    assert grown[0] < made.plan.size_bytes / 2
    assert made.plan.size_bytes <= grown[-1] < made.plan.size_bytes + 8192
    growing.finish()
    assert bytes_grown(tmp_path) == grown[-1]


def test_a_disk_that_fills_is_named_and_what_was_noted_stays(made: Made, tmp_path: Path, monkeypatch) -> None:
    growing, keys = made.open(tmp_path), list(made.parts)
    made.move(growing, keys[:1])
    monkeypatch.setattr(Blueprint, "copy", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    part = Path(shutil.copyfile(made.parts[keys[1]], tmp_path / f"{keys[1]}.gguf"))
    with pytest.raises(DiskSpaceError, match=r"ran full while made\.gguf was written"):
        growing.move(part)
    assert part.exists()
    monkeypatch.undo()
    assert list(made.open(tmp_path).held) == keys[:1]
    made.finish(tmp_path)
