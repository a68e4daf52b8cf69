"""Parts put together equal llama.cpp's run over the whole file, byte for byte."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Q
from gguf import GGUFReader

from luq_gguf.artifacts import Plan, write_record
from luq_gguf.assemble import assemble, header_bytes
from luq_gguf.checkpoint import Checkpoint
from luq_gguf.errors import ArtifactError, DiskSpaceError
from luq_gguf.export import export_text, write_header_only
from luq_gguf.families import find_family
from luq_gguf.gguf_file import GGUFFile
from luq_gguf.importance import ImatrixNote
from luq_gguf.planning import Budget, PlanInputs, layer_of, make_plan
from luq_gguf.quantize import make_part, quantize_gguf, resolve_types, tensor_specs
from luq_gguf.quantizer import Quantizer
from luq_gguf.verify import verify_types
from tests.ggufs import write_imatrix
from tests.pico import build_pico


@dataclass(frozen=True)
class Model:
    """A pico checkpoint, exported whole and as a header, with an importance matrix."""

    checkpoint: Checkpoint
    folder: Path

    @property
    def full(self) -> Path:
        return self.folder / "full.gguf"

    @property
    def header(self) -> Path:
        return self.folder / "header.gguf"

    @property
    def imatrix(self) -> Path:
        return self.folder / "imatrix.gguf"

    def export_layer(self, layer: int | None, target: Path) -> None:
        family = find_family(self.checkpoint.config)
        export_text(
            self.checkpoint, family, target, select=lambda name: layer_of(name) == layer, tokenizer=False
        )  # fmt: skip

    def plan(self, low_type: str, high_type: str, low_layers: int, quantizer: Quantizer) -> Plan:
        base = GGUFFile.open(self.header)
        resolved = resolve_types(self.header, high_type, low_type, quantizer=quantizer)
        inputs = PlanInputs("c", high_type, low_type, "depth", resolved.high_fallbacks, base.data_end)
        size = header_bytes(base, high_type, ImatrixNote.of(self.imatrix))
        return make_plan(tensor_specs(base, resolved), size, (1, 2, 0), Budget(low_layers=low_layers), inputs)

    def parts(self, plan: Plan, folder: Path, threads: int, quantizer: Quantizer) -> list[Path]:
        folder.mkdir(exist_ok=True)
        paths = []
        for layer in (None, *range(plan.layers)):
            part = folder / f"{layer}.gguf"
            make_part(
                lambda path, layer=layer: self.export_layer(layer, path), part, types_of(plan), self.imatrix,
                high_type=plan.high_type, threads=threads, quantizer=quantizer,
            )  # fmt: skip
            paths.append(part)
        return paths


def types_of(plan: Plan) -> dict[str, Q]:
    return {name: Q[kind] for name, kind in plan.types.items()}


def make_model(folder: Path, **options) -> Model:
    model = Model(Checkpoint.open(build_pico(folder / "checkpoint", **options)), folder)
    family = find_family(model.checkpoint.config)
    export_text(model.checkpoint, family, model.full)
    write_header_only(model.checkpoint, family, model.header, dtype="auto")
    shapes = {name: tensor.shape[::-1] for name, tensor in GGUFFile.open(model.full).tensors.items()}
    write_imatrix(model.imatrix, shapes)
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def made(model: Model, quantizer: Quantizer) -> tuple[Plan, list[Path], Path]:
    """A plan with its parts and the file that came of them."""
    plan = model.plan("IQ1_M", "Q4_K_M", 1, quantizer)
    parts = model.parts(plan, model.folder / "parts", 2, quantizer)
    target = model.folder / "made.gguf"
    assemble(parts, model.header, plan, target, imatrix=ImatrixNote.of(model.imatrix))
    return plan, parts, target


def check_against_whole_run(model: Model, plan: Plan, tmp_path: Path, quantizer: Quantizer) -> None:
    parts = model.parts(plan, tmp_path / "parts", 1, quantizer)
    assemble(parts, model.header, plan, tmp_path / "made.gguf", imatrix=ImatrixNote.of(model.imatrix))
    quantize_gguf(
        model.full, tmp_path / "whole.gguf", types_of(plan), model.imatrix, high_type=plan.high_type, threads=2,
        quantizer=quantizer,
    )  # fmt: skip
    made, whole = GGUFReader(tmp_path / "made.gguf"), GGUFReader(tmp_path / "whole.gguf")
    assert {row.name: (row.tensor_type.name, row.data.tobytes()) for row in made.tensors} == {
        row.name: (plan.types[row.name], row.data.tobytes()) for row in whole.tensors
    }
    assert (tmp_path / "made.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert (tmp_path / "made.gguf").stat().st_size == plan.size_bytes
    assert verify_types(tmp_path / "made.gguf", plan, header=GGUFFile.open(model.full)) == []


@pytest.mark.parametrize(
    "asked",
    [("IQ1_M", "Q4_K_M", 2), ("IQ2_XXS", "Q5_K_M", 1), ("Q2_K", "Q8_0", 3), ("IQ1_S", "Q4_K_M", 0), ("Q4_0", "F16", 1)],
)
def test_equals_a_whole_run(model: Model, tmp_path: Path, quantizer: Quantizer, asked: tuple[str, str, int]):
    check_against_whole_run(model, model.plan(*asked, quantizer), tmp_path, quantizer)


@pytest.mark.parametrize("options", [{"dtype": "f16", "tied": True}, {"dtype": "f32", "shards": 2}])
def test_equals_a_whole_run_for_other_checkpoints(tmp_path: Path, quantizer: Quantizer, options: dict):
    model = make_model(tmp_path, **options)
    check_against_whole_run(model, model.plan("IQ1_M", "Q4_K_M", 1, quantizer), tmp_path, quantizer)


def test_threads_do_not_change_a_byte(model: Model, made, tmp_path: Path, quantizer: Quantizer):
    plan, parts, target = made
    again = model.parts(plan, tmp_path / "parts", 1, quantizer)
    assert [part.read_bytes() for part in again] == [part.read_bytes() for part in parts]
    assemble(list(reversed(again)), model.header, plan, tmp_path / "again.gguf", imatrix=ImatrixNote.of(model.imatrix))
    assert (tmp_path / "again.gguf").read_bytes() == target.read_bytes()


def test_llama_cpp_loads_the_file(made):
    import llama_cpp

    llama = llama_cpp.Llama(str(made[2]), n_ctx=32, verbose=False)
    tokens = llama.tokenize(b"red circle")
    assert llama.eval(tokens) is None
    llama.close()


def test_progress_ends_at_the_total(model: Model, made, tmp_path: Path):
    seen = []
    assemble(
        made[1], model.header, made[0], tmp_path / "x.gguf", imatrix=ImatrixNote.of(model.imatrix),
        progress=lambda *told: seen.append(told),
    )  # fmt: skip
    assert {what for what, _, _ in seen} == {"assemble"}
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})
    assert seen[-1][1] == seen[-1][2]


def test_a_missing_or_foreign_part_is_named(model: Model, made, tmp_path: Path, quantizer: Quantizer):
    plan, parts, _ = made
    target = tmp_path / "x.gguf"
    note = ImatrixNote.of(model.imatrix)
    with pytest.raises(ArtifactError, match=r"no part holds blk\.2\."):
        assemble(parts[:-1], model.header, plan, target, imatrix=note)
    other = model.plan("Q2_K", "Q4_K_M", 1, quantizer)
    with pytest.raises(ArtifactError, match=r"has blk\.1\.\w+\.weight as IQ1_M .* wanted is Q2_K"):
        assemble(parts, model.header, other, target, imatrix=note)
    cut = plan.model_copy(update={"types": dict(list(plan.types.items())[:-1])})
    with pytest.raises(ArtifactError, match="the plan is of"):
        assemble(parts, model.header, cut, target, imatrix=note)
    with pytest.raises(ArtifactError, match="its plan says"):
        assemble(parts, model.header, plan.model_copy(update={"size_bytes": 5}), target, imatrix=note)
    with pytest.raises(DiskSpaceError, match="bytes free"):
        assemble(parts, model.header, plan.model_copy(update={"size_bytes": 1 << 60}), target, imatrix=note)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_survives_its_file(made, tmp_path: Path):
    write_record(tmp_path / "plan.json", made[0])
    assert verify_types(made[2], Plan.model_validate_json((tmp_path / "plan.json").read_bytes())) == []
