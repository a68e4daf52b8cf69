"""One pass, layer by layer, against transformers' whole model with hooks, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from luq_gguf import activations
from luq_gguf.activations import Analysis, analyze, resolve_compute_type
from luq_gguf.artifacts import MODALITIES
from luq_gguf.checkpoint import Checkpoint
from luq_gguf.demo.scenes import draw_scene, make_scene
from luq_gguf.entropy import measure_entropy, token_rank
from luq_gguf.errors import CalibrationError, CheckpointError, TensorError
from luq_gguf.families import find_family
from luq_gguf.families.qwen_vl_modules import mrope_positions
from luq_gguf.images import Picture
from luq_gguf.imatrix import weights_of
from luq_gguf.processors import fast_bf16
from luq_gguf.samples import CalibrationSet, Sample
from tests.pico import build_pico

WEIGHTS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
LAYERS = 3


def picture(number: int, size: tuple[int, int]) -> Sample:
    image = draw_scene(make_scene(number)).resize(size)
    return Sample(f"picture-{number}", f"What is {number} in the picture?", "red circle", Picture.of(image))


COUNTED = (
    picture(1, (112, 112)),
    Sample("question", "How many things are there?", "four"),
    picture(2, (140, 84)),
    Sample("open", "Where are you?"),
    Sample("text", text="You are a helpful assistant. " * 5),
    picture(3, (112, 112)),
)
HELD_OUT = (picture(4, (84, 84)), Sample("two", "Yes or no?", "yes"), Sample("unanswered", "Who?"))
CALIBRATION = CalibrationSet("a few", COUNTED, HELD_OUT, "digest")


@dataclass
class Oracle:
    """What the whole model does with each sample."""

    inputs: dict[str, dict[str, list[np.ndarray]]] = field(default_factory=dict)
    sites: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    kinds: dict[str, np.ndarray] = field(default_factory=dict)
    logits: dict[str, np.ndarray] = field(default_factory=dict)
    answers: dict[str, list[int]] = field(default_factory=dict)
    positions: dict[str, np.ndarray] = field(default_factory=dict)
    grids: dict[str, tuple[int, int] | None] = field(default_factory=dict)

    def sums(self, weight: str, modality: str) -> tuple[np.ndarray, int]:
        rows = [row for part in self.inputs[weight].values() for row in part]
        kinds = np.concatenate([self.kinds[name] for name in self.inputs[weight]])
        chosen = np.array(rows, dtype=np.float64)[kinds == modality]
        return (chosen**2).sum(axis=0), len(chosen)

    def vectors(self, site: str, tokens: str, *, seed: int = 0) -> np.ndarray:
        """Token vectors at a site, by the rank that decides which ones are taken."""
        ranks, found = [], []
        for sample in COUNTED:
            if (sample.picture is not None) == (tokens == "multimodal"):
                rows = self.sites[site][sample.id]
                ranks.append(token_rank(sample.id, len(rows), seed))
                found.append(rows)
        return np.concatenate(found)[np.argsort(np.concatenate(ranks))]


def tokens_of(sample: Sample, tokenizer, processor) -> tuple[list[int], list[int], dict]:
    """Token ids of prompt and answer, and what the model takes besides."""
    if sample.text is not None:
        return tokenizer(sample.text, add_special_tokens=False)["input_ids"], [], {}
    content = [{"type": "text", "text": sample.question}]
    if sample.picture is not None:
        content.insert(0, {"type": "image"})
    messages = [{"role": "user", "content": content}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    extra = {}
    if sample.picture is not None:
        made = processor(images=[sample.picture.read()], return_tensors="pt")
        count = int(made["image_grid_thw"][0].prod()) // 4
        prompt = prompt.replace("<|image_pad|>", "<|image_pad|>" * count)
        extra = {"pixel_values": made["pixel_values"], "image_grid_thw": made["image_grid_thw"]}
    answer = [] if sample.answer is None else tokenizer(sample.answer + "<|im_end|>")["input_ids"]
    return tokenizer(prompt, add_special_tokens=False)["input_ids"], answer, extra


def run_whole_model(folder: Path) -> Oracle:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer, processor = AutoTokenizer.from_pretrained(folder), Qwen2VLImageProcessorPil.from_pretrained(folder)
    oracle, image_id = Oracle(), model.config.image_token_id
    current = ""

    def keep_input(weight: str):
        def hook(_, inputs):
            if current in {sample.id for sample in COUNTED}:
                oracle.inputs.setdefault(weight, {})[current] = list(inputs[0][0].numpy())

        return hook

    def keep(site: str, states: torch.Tensor) -> None:
        oracle.sites.setdefault(site, {})[current] = states.reshape(-1, states.shape[-1]).numpy()

    def keep_output(site: str):
        return lambda _, __, output: keep(site, output[0] if isinstance(output, tuple) else output)

    for index, layer in enumerate(model.model.language_model.layers):
        for name, weight in WEIGHTS.items():
            layer.get_submodule(name).register_forward_pre_hook(keep_input(f"blk.{index}.{weight}.weight"))
        layer.register_forward_hook(keep_output(f"output {index}"))
        layer.input_layernorm.register_forward_hook(keep_output(f"input {index}"))
        layer.register_forward_pre_hook(lambda _, inputs, site=f"entering {index}": keep(site, inputs[0]))
        layer.self_attn.o_proj.register_forward_hook(keep_output(f"attention {index}"))
        layer.mlp.down_proj.register_forward_hook(keep_output(f"ffn {index}"))
    model.lm_head.register_forward_pre_hook(keep_input("output.weight"))
    for sample in (*COUNTED, *HELD_OUT):
        current = sample.id
        prompt, answer, extra = tokens_of(sample, tokenizer, processor)
        ids = torch.tensor([prompt + answer])
        types = (ids == image_id).int()
        with torch.inference_mode():
            made = model(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=types, **extra)
        grid = extra.get("image_grid_thw")
        positions, _ = model.model.get_rope_index(
            ids, mm_token_type_ids=types, image_grid_thw=grid, attention_mask=torch.ones_like(ids)
        )
        oracle.positions[current] = positions[:, 0].numpy()
        oracle.grids[current] = None if grid is None else (int(grid[0, 1]) // 2, int(grid[0, 2]) // 2)
        oracle.kinds[current] = np.where(types[0], "image", "text" if sample.picture is None else "multimodal_text")
        oracle.logits[current], oracle.answers[current] = made.logits[0].numpy(), answer
    return oracle


@dataclass
class Run:
    """An analysis, the vectors of which it took the entropy, in the order of the calls, and torch's threads then."""

    analysis: Analysis
    vectors: list[np.ndarray]
    threads: set[int]


def run_analysis(folder: Path, calibration: CalibrationSet = CALIBRATION, **options) -> Run:
    seen: list[np.ndarray] = []
    used: set[int] = set()

    def measure(vectors, *, threads):
        seen.append(vectors)
        used.add(torch.get_num_threads())
        return measure_entropy(vectors, threads=threads)

    checkpoint = Checkpoint.open(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activations, "measure_entropy", measure)
        made = analyze(checkpoint, find_family(checkpoint.config, checkpoint), calibration, **options)
    return Run(made, seen, used)


@pytest.fixture(scope="module")
def oracle(pico_checkpoint: Path) -> Oracle:
    return run_whole_model(pico_checkpoint)


@pytest.fixture(scope="module")
def run(pico_checkpoint: Path) -> Run:
    return run_analysis(pico_checkpoint, compute_type="f32", input_entropy=True)


def assert_same_sums(one: Analysis, other: Analysis, tolerance: float) -> None:
    assert one.sums.counts == other.sums.counts
    assert list(one.sums.squares) == list(other.sums.squares)
    for name, squares in one.sums.squares.items():
        for modality, row in squares.items():
            np.testing.assert_allclose(row, other.sums.squares[name][modality], rtol=tolerance, err_msg=name)


def entropies_of(analysis: Analysis) -> np.ndarray:
    return np.array([[row.mean for row in rows] for rows in analysis.scores.entropy.values()])


def test_sums_are_those_of_the_whole_model(run: Run, oracle: Oracle):
    found = {weight for name in run.analysis.sums.squares for weight in weights_of(name)}
    assert found == set(oracle.inputs)
    for name, squares in run.analysis.sums.squares.items():
        for weight in weights_of(name):
            for modality in MODALITIES:
                expected, count = oracle.sums(weight, modality)
                assert run.analysis.sums.counts[name][modality] == count > 0
                np.testing.assert_allclose(squares[modality], expected, rtol=1e-3, err_msg=f"{weight} {modality}")


def test_entropies_are_of_the_whole_models_vectors(run: Run, oracle: Oracle):
    entropy = run.analysis.scores.entropy
    assert set(entropy) == {"input_multimodal", "input_text", "output_multimodal", "output_text"}
    vectors = iter(run.vectors)
    for layer in range(LAYERS):
        for site in ("input", "output"):
            for tokens in ("multimodal", "text"):
                expected = oracle.vectors(f"{site} {layer}", tokens)
                scale = np.abs(expected).max()
                np.testing.assert_allclose(next(vectors), expected, rtol=1e-3, atol=1e-4 * scale)
                row = entropy[f"{site}_{tokens}"][layer]
                assert row.vectors == len(expected)
                assert row.mean == pytest.approx(measure_entropy(expected).mean, abs=0.02)
    assert next(vectors, None) is None


def test_the_reference_is_the_whole_models_at_the_held_out_answers(run: Run, oracle: Oracle):
    reference = run.analysis.reference
    assert reference.samples == ("picture-4", "two")
    for number, name in enumerate(reference.samples):
        answer = oracle.answers[name]
        here = slice(reference.starts[number], reference.starts[number + 1])
        assert reference.answers[here].tolist() == answer
        assert reference.prompts[number] == len(oracle.logits[name]) - len(answer)
        before = torch.from_numpy(oracle.logits[name][-len(answer) - 1 : -1]).double()
        expected = before.log_softmax(dim=1)
        given = expected.gather(1, torch.from_numpy(reference.top[here]).long())
        np.testing.assert_allclose(reference.log_probabilities[here], given, atol=1e-4)
        np.testing.assert_allclose(given, expected.topk(64, dim=1).values, atol=1e-4)
        np.testing.assert_allclose(reference.rest[here], 1 - given.exp().sum(dim=1), atol=1e-4)
    assert reference.starts[-1] == len(reference.answers)


def test_positions_are_those_of_the_whole_model(oracle: Oracle):
    for name, expected in oracle.positions.items():
        found = mrope_positions(oracle.kinds[name] == "image", oracle.grids[name])
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("start", "after", "grid"), [(3, 5, (4, 4)), (1, 1, (2, 6)), (0, 7, (5, 2)), (4, 3, (1, 1))])
def test_positions_of_images_in_any_place(pico_checkpoint: Path, start, after, grid):
    config = Qwen2_5_VLConfig.from_pretrained(pico_checkpoint)
    with torch.device("meta"):
        model = Qwen2_5_VLModel(config)
    types = torch.tensor([[0] * start + [1] * (grid[0] * grid[1]) + [0] * after])
    pixels = torch.tensor([[1, grid[0] * 2, grid[1] * 2]])
    expected, _ = model.get_rope_index(torch.zeros_like(types), mm_token_type_ids=types, image_grid_thw=pixels)
    np.testing.assert_array_equal(mrope_positions(types[0].numpy() == 1, grid), expected[:, 0].numpy())


def test_counts_and_scores_say_what_was_measured(run: Run, oracle: Oracle, pico_checkpoint: Path):
    scores = run.analysis.scores
    kinds = np.concatenate([oracle.kinds[sample.id] for sample in COUNTED])
    assert scores.tokens == {modality: int((kinds == modality).sum()) for modality in MODALITIES}
    assert (scores.samples, scores.held_out, scores.layers, scores.compute_type) == (6, 3, LAYERS, "f32")
    assert scores.checkpoint == Checkpoint.open(pico_checkpoint).digest
    assert any("output_text" in warning for warning in scores.warnings)
    assert run.analysis.reference.context["calibration_digest"] == "digest"


def test_batching_and_the_order_of_samples_do_not_matter(pico_checkpoint: Path, run: Run, monkeypatch):
    monkeypatch.setattr(activations, "BATCH_TOKENS", 1)
    alone = run_analysis(pico_checkpoint, compute_type="f32", input_entropy=True)
    assert_same_sums(alone.analysis, run.analysis, 1e-4)
    for one, other in zip(alone.vectors, run.vectors, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5 * np.abs(other).max())
    monkeypatch.undo()
    turned = replace(CALIBRATION, samples=COUNTED[::-1], held_out=HELD_OUT[::-1])
    again = run_analysis(pico_checkpoint, turned, compute_type="f32", input_entropy=True)
    assert_same_sums(again.analysis, run.analysis, 0)
    assert again.analysis.scores == run.analysis.scores


def test_held_out_samples_do_not_count(pico_checkpoint: Path, run: Run):
    none = run_analysis(pico_checkpoint, replace(CALIBRATION, held_out=()), compute_type="f32", input_entropy=True)
    assert_same_sums(none.analysis, run.analysis, 1e-4)
    assert none.analysis.reference.samples == ()
    assert none.analysis.reference.answers.shape == (0,)


def test_bf16_stays_close(pico_checkpoint: Path, run: Run):
    rough = run_analysis(pico_checkpoint, compute_type="bf16", input_entropy=True).analysis
    assert rough.sums.counts == run.analysis.sums.counts
    for name, squares in run.analysis.sums.squares.items():
        for modality, row in squares.items():
            found = rough.sums.squares[name][modality]
            assert np.linalg.norm(found - row) < 0.05 * np.linalg.norm(row), f"{name} {modality}"
            np.testing.assert_allclose(found, row, rtol=0.05, atol=0.05 * row.mean(), err_msg=f"{name} {modality}")
    spreads = [row.spread for rows in run.analysis.scores.entropy.values() for row in rows]
    assert np.abs(entropies_of(rough) - entropies_of(run.analysis)).max() < max(0.1, 4 * max(spreads))


def test_both_forms_of_a_checkpoint_give_the_same(pico_checkpoint: Path, run: Run, tmp_path: Path):
    nested = build_pico(tmp_path / "nested", form="transformers5")
    found = run_analysis(nested, compute_type="f32", input_entropy=True).analysis
    assert_same_sums(found, run.analysis, 0)
    assert found.scores.entropy == run.analysis.scores.entropy
    np.testing.assert_array_equal(found.reference.log_probabilities, run.analysis.reference.log_probabilities)


def test_tied_embeddings_are_the_output_and_have_no_sums(tmp_path: Path):
    folder = build_pico(tmp_path / "tied", tied=True, layers=2)
    found = run_analysis(folder, compute_type="f32").analysis
    assert "output.weight" not in found.sums.squares
    assert set(found.scores.entropy) == {"output_multimodal", "output_text"}
    logits = run_whole_model(folder).logits["two"][-3:-1]
    expected = torch.from_numpy(logits).double().log_softmax(dim=1).topk(64, dim=1).values
    np.testing.assert_allclose(found.reference.log_probabilities[-2:], expected, rtol=2e-6, atol=1e-4)


@pytest.mark.parametrize(
    ("tensor", "place"),
    [
        ("model.layers.1.mlp.up_proj.weight", "the output of layer 1"),
        ("visual.merger.mlp.2.weight", "the vision tower's output for sample picture-"),
    ],
)
def test_activations_that_overflow_are_one_clear_error(tmp_path: Path, tensor: str, place: str):
    folder = build_pico(tmp_path / "pico", dtype="f32")
    tensors = load_file(folder / "model.safetensors")
    tensors[tensor] = np.full_like(tensors[tensor], 3e38)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{place}.* is not finite, computed in f32") as caught:
        run_analysis(folder, compute_type="f32")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["visual.blocks.1.attn.qkv.weight", "model.layers.2.self_attn.q_proj.bias", "lm_head.weight"]
)
def test_weights_that_are_not_finite_are_named(tmp_path: Path, name: str):
    folder = build_pico(tmp_path / "pico", dtype="f32")
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name].copy()
    tensors[name].flat[3] = np.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(TensorError, match=name):
        run_analysis(folder, compute_type="f32")


def test_a_config_that_transformers_refuses_is_a_checkpoint_error(pico_checkpoint: Path):
    checkpoint = Checkpoint.open(pico_checkpoint)
    family = find_family(checkpoint.config, checkpoint)
    broken = replace(checkpoint, config=checkpoint.config | {"vision_config": 5})
    with pytest.raises(CheckpointError, match=r"config\.json"):
        analyze(broken, family, CALIBRATION, compute_type="f32")


def test_the_seed_changes_only_the_choice_of_tokens(pico_checkpoint: Path, run: Run):
    other = run_analysis(pico_checkpoint, compute_type="f32", seed=1).analysis
    assert other.scores.entropy["output_text"] != run.analysis.scores.entropy["output_text"]
    assert_same_sums(other, run.analysis, 0)


def test_the_same_picture_goes_through_the_tower_once(pico_checkpoint: Path):
    same = [Sample(f"s{number}", f"{number}?", None, COUNTED[0].picture) for number in range(3)]
    calls = []
    run_analysis(
        pico_checkpoint, CalibrationSet("same", tuple(same), (), ""), compute_type="f32",
        progress=lambda what, done, total: calls.append((what, done, total)),
    )  # fmt: skip
    assert calls[0] == ("images", 1, 1)
    layer = [("batches", 0, 1), ("batches", 1, 1)]
    assert calls[1:] == [*(call for n in range(LAYERS) for call in (("analyze", n, LAYERS), *layer)), ("analyze", 3, 3)]


def test_texts_alone_need_no_picture(pico_checkpoint: Path):
    texts = CalibrationSet("texts", (COUNTED[1], COUNTED[4]), (), "", skipped=3)
    found = run_analysis(pico_checkpoint, texts, compute_type="f32").analysis
    assert list(found.scores.entropy) == ["output_text"]
    assert found.sums.counts["blk.0.attn_q.weight"]["image"] == 0
    assert "3 rows of texts could not be used and were left out" in found.scores.warnings


def test_the_compute_type_is_what_was_asked_for():
    assert (resolve_compute_type("bf16"), resolve_compute_type("f32")) == ("bf16", "f32")
    assert resolve_compute_type("auto") == ("bf16" if fast_bf16() else "f32")


@pytest.mark.parametrize(
    ("told", "fast"),
    [
        ("vendor_id: AuthenticAMD\nflags: fma avx512f avx512_bf16", True),
        ("vendor_id: GenuineIntel\nflags: fma avx512f avx512_bf16 amx_tile amx_bf16", True),
        ("vendor_id: GenuineIntel\nflags: fma avx512f avx512_bf16 avx512_fp16", False),
        ("vendor_id: GenuineIntel\nflags: fma avx2", False),
        ("vendor_id: AuthenticAMD\nflags: fma avx2\nbugs: bf16", False),
        ("processor: 0\nFeatures: asimd bf16 i8mm\nCPU implementer: 0x41", True),
        ("processor: 0\nFeatures: asimd\n\nprocessor: 1\nFeatures: asimd bf16", False),
        ("", False),
    ],
)
def test_bf16_is_taken_where_it_is_faster(tmp_path: Path, told: str, fast: bool):
    """Of Linux' two forms; without AMX, Intel's instructions for it are slower than float32."""
    (tmp_path / "cpuinfo").write_text("".join(f"{line.replace(':', chr(9) + ':')}\n" for line in told.splitlines()))
    assert fast_bf16(tmp_path / "cpuinfo") is fast
    assert not fast_bf16(tmp_path / "missing")


def test_samples_that_the_model_cannot_take_are_left_out_and_counted(pico_checkpoint: Path):
    long = Sample("endless", "word " * 2000, origin="rows.jsonl:8")
    text = Sample("pages", text="You are a helpful assistant. " * 400)
    calibration = CalibrationSet("a set", (*COUNTED, long, text), HELD_OUT, "digest", skip_bad=True)
    checkpoint = Checkpoint.open(pico_checkpoint)
    scores = analyze(checkpoint, find_family(checkpoint.config, checkpoint), calibration, compute_type="f32").scores
    assert (scores.samples, scores.held_out) == (len(COUNTED) + 1, len(HELD_OUT))
    assert any(
        line.startswith("1 samples of a set do not fit the model, the first: rows.jsonl:8") for line in scores.warnings
    )
    refused = replace(calibration, skip_bad=False)
    with pytest.raises(CalibrationError, match=r"rows\.jsonl:8"):
        analyze(checkpoint, find_family(checkpoint.config, checkpoint), refused, compute_type="f32")


@pytest.mark.parametrize("tokens", ["multimodal", "text"])
def test_what_layers_change_is_what_transformers_changes(run: Run, oracle: Oracle, tokens: str):
    for layer in range(LAYERS):
        before, after, attention, ffn = (
            oracle.vectors(f"{site} {layer}", tokens).astype(np.float64)
            for site in ("entering", "output", "attention", "ffn")
        )
        lengths = (after**2).sum(axis=1)
        cosines = (before * after).sum(axis=1) / np.sqrt((before**2).sum(axis=1) * lengths)
        changes = {key: run.analysis.scores.changes[f"{key}_{tokens}"][layer] for key in ("cosine", "attention", "ffn")}
        assert changes["cosine"] == pytest.approx(cosines.mean(), abs=1e-4)
        assert changes["attention"] == pytest.approx(((attention**2).sum(axis=1) / lengths).mean(), rel=1e-3)
        assert changes["ffn"] == pytest.approx(((ffn**2).sum(axis=1) / lengths).mean(), rel=1e-3)


def test_it_takes_the_threads_that_it_is_given(pico_checkpoint: Path, run: Run):
    before = torch.get_num_threads()
    assert run.threads == {before}
    one, more = (run_analysis(pico_checkpoint, compute_type="f32", threads=count) for count in (1, 3))
    assert (one.threads, more.threads) == ({1}, {3})
    assert torch.get_num_threads() == before
    for name, by_modality in one.analysis.sums.squares.items():
        for key, row in by_modality.items():
            np.testing.assert_allclose(more.analysis.sums.squares[name][key], row, rtol=1e-4, atol=1e-9)
    assert one.analysis.scores.tokens == more.analysis.scores.tokens == run.analysis.scores.tokens


def test_threads_are_given_back_after_a_failure(pico_checkpoint: Path):
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="stop"):
        run_analysis(pico_checkpoint, threads=before + 1, progress=raise_stop)
    assert torch.get_num_threads() == before


def raise_stop(what: str, done: int, total: int) -> None:
    raise RuntimeError("stop")
