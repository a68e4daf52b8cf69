"""Sums and entropies of every family against a plain forward pass of transformers with hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from luq_gguf.activations import Analysis, analyze
from luq_gguf.artifacts import MODALITIES
from luq_gguf.entropy import measure_entropy, token_rank
from luq_gguf.families import find_family
from luq_gguf.images import Picture
from luq_gguf.imatrix import weights_of
from luq_gguf.samples import CalibrationSet, Sample
from tests.families_under_test import PLACES, READING, SEEING, Original, picture
from tests.picos import build_family
from tests.test_activations import WEIGHTS


def calibration_of(original: Original) -> CalibrationSet:
    """Two pictures of different shapes where the family takes them, questions and texts; one more to judge by."""
    sizes = original.sizes() if original.name in SEEING else []
    shown = [
        Sample(
            f"picture-{number}", f"What is {number} in the picture?", "red circle", Picture.of(picture(*size, number))
        )
        for number, size in enumerate((sizes * 2)[:3])
    ]
    read = [
        Sample("question", "How many things are there?", "four"),
        Sample("open", "Where are you?"),
        Sample("text", text="You are a helpful assistant. " * 8),
    ]
    held_out = (*shown[2:], Sample("two", "Yes or no?", "yes"))
    return CalibrationSet("a few", (*shown[:2], *read), held_out, "digest")


@dataclass
class Seen:
    """What the whole model does with the samples: rows by weight or site, and what each token is."""

    kinds: dict[str, np.ndarray] = field(default_factory=dict)
    rows: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    logits: dict[str, np.ndarray] = field(default_factory=dict)

    def keep(self, name: str, sample: str, value: Any) -> None:
        states = value[0] if isinstance(value, tuple) else value
        self.rows.setdefault(name, {})[sample] = states.reshape(-1, states.shape[-1]).float().numpy()

    def sums(self, name: str, modality: str, samples: list[str]) -> tuple[np.ndarray, int]:
        rows = np.concatenate([self.rows[name][sample] for sample in samples]).astype(np.float64)
        chosen = rows[np.concatenate([self.kinds[sample] for sample in samples]) == modality]
        return (chosen**2).sum(axis=0), len(chosen)

    def vectors(self, name: str, samples: list[str]) -> np.ndarray:
        ranks = [token_rank(sample, len(self.rows[name][sample]), 0) for sample in samples]
        return np.concatenate([self.rows[name][s] for s in samples])[np.argsort(np.concatenate(ranks))]


def run_whole_model(original: Original, calibration: CalibrationSet) -> Seen:
    seen, model = Seen(), original.model
    with hooked(model, seen) as current:
        for sample in (*calibration.samples, *calibration.held_out):
            current["sample"] = sample.id
            given = inputs_of(original, sample)
            with torch.inference_mode():
                seen.logits[sample.id] = model(**given, use_cache=False).logits[0].float().numpy()
            ids = given["input_ids"][0]
            piece = PLACES[original.name][2] if original.name in SEEING else ""
            image = ids == original.tokenizer.convert_tokens_to_ids(piece) if piece else torch.zeros(len(ids))
            text = "text" if sample.picture is None else "multimodal_text"
            seen.kinds[sample.id] = np.where(image.bool(), "image", text)
    return seen


@contextmanager
def hooked(model: Any, seen: Seen) -> Iterator[dict[str, str]]:
    """Keep inputs of all weights, inputs and outputs of all layers; gives the place for the sample's name."""
    current: dict[str, str] = {}
    decoder = getattr(model.model, "language_model", model.model)
    handles = []
    for index, layer in enumerate(decoder.layers):
        for name, weight in WEIGHTS.items():
            key = f"blk.{index}.{weight}.weight"
            handles.append(
                layer.get_submodule(name).register_forward_pre_hook(
                    lambda _, given, key=key: seen.keep(key, current["sample"], given[0])
                )
            )
        following = decoder.layers[index + 1] if index + 1 < len(decoder.layers) else decoder.norm
        handles.append(  # what the next layer gets: features for deeper layers are added after a layer
            following.register_forward_pre_hook(
                lambda _, given, key=f"output {index}": seen.keep(key, current["sample"], given[0])
            )
        )
    handles.append(
        model.lm_head.register_forward_pre_hook(
            lambda _, given: seen.keep("output.weight", current["sample"], given[0])
        )
    )
    yield current
    for handle in handles:
        handle.remove()


def inputs_of(original: Original, sample: Sample) -> dict[str, torch.Tensor]:
    if sample.text is not None:
        ids = original.tokenizer(sample.text, return_tensors="pt").input_ids
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return given | ({"token_type_ids": torch.zeros_like(ids)} if original.name == "gemma-3" else {})
    image = None if sample.picture is None else sample.picture.read()
    space = " " if original.name == "llava-1.5" else ""  # what SentencePiece begins a text with
    answer = "" if sample.answer is None else space + sample.answer + original.family.turn_end
    return original.inputs(sample.question, image, answer)


@dataclass(frozen=True)
class Case:
    original: Original
    calibration: CalibrationSet
    seen: Seen
    analysis: Analysis

    @property
    def samples(self) -> list[str]:
        """Those that are counted."""
        return [sample.id for sample in self.calibration.samples]


@pytest.fixture(scope="module", params=[*SEEING, *READING])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    original = Original(request.param, build_family(tmp_path_factory.mktemp(request.param) / "pico", request.param))
    calibration = calibration_of(original)
    analysis = analyze(original.checkpoint, original.family, calibration, compute_type="f32")
    return Case(original, calibration, run_whole_model(original, calibration), analysis)


def test_sums_are_those_of_the_whole_model(case: Case) -> None:
    sums = case.analysis.sums
    expected = {name for name in case.seen.rows if name.endswith(".weight")}
    if case.original.family.tied_embeddings:
        expected -= {"output.weight"}
    assert {weight for name in sums.squares for weight in weights_of(name)} == expected
    for name, squares in sums.squares.items():
        for weight in weights_of(name):
            for modality in MODALITIES:
                wanted, count = case.seen.sums(weight, modality, case.samples)
                assert sums.counts[name][modality] == count
                assert (count > 0) == (modality == "text" or case.original.name in SEEING)
                np.testing.assert_allclose(
                    squares[modality], wanted, rtol=2e-3, atol=1e-9, err_msg=f"{weight} {modality}"
                )


def test_entropies_are_those_of_the_whole_models_vectors(case: Case) -> None:
    entropy = case.analysis.scores.entropy
    groups = {
        "multimodal": [s.id for s in case.calibration.samples if s.picture is not None],
        "text": [s.id for s in case.calibration.samples if s.picture is None],
    }
    assert set(entropy) == {f"output_{tokens}" for tokens, samples in groups.items() if samples}
    for tokens, samples in groups.items():
        for layer in range(case.original.family.layers) if samples else ():
            row, vectors = entropy[f"output_{tokens}"][layer], case.seen.vectors(f"output {layer}", samples)
            assert row.vectors == len(vectors)
            assert row.mean == pytest.approx(measure_entropy(vectors).mean, abs=0.05), (tokens, layer)


def test_the_reference_is_the_whole_models_at_the_held_out_answers(case: Case) -> None:
    reference = case.analysis.reference
    assert set(reference.samples) == {sample.id for sample in case.calibration.held_out}
    for number, name in enumerate(reference.samples):
        here = slice(reference.starts[number], reference.starts[number + 1])
        count = here.stop - here.start
        logits = torch.from_numpy(case.seen.logits[name][-count - 1 : -1]).double()
        expected = logits.log_softmax(dim=1).gather(1, torch.from_numpy(reference.top[here]).long())
        np.testing.assert_allclose(reference.log_probabilities[here], expected, atol=2e-3)


@pytest.mark.parametrize("family", ["qwen3-vl", "gemma-3", "llava-1.5"])
def test_an_analysis_that_was_killed_after_any_layer_goes_on(tmp_path: Path, family: str) -> None:
    """Features for deeper layers are needed after the first layer too."""
    original = Original(family, build_family(tmp_path / "pico", family))
    calibration = calibration_of(original)
    whole = analyze(original.checkpoint, original.family, calibration, compute_type="f32")
    for stop in range(1, original.family.layers):
        keep = tmp_path / f"keep-{stop}"
        keep.mkdir()

        def progress(stage: str, done: int, total: int, stop: int = stop) -> None:
            if stage == "analyze" and done == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            analyze(original.checkpoint, original.family, calibration, compute_type="f32", keep=keep, progress=progress)
        again = find_family(original.checkpoint.config, original.checkpoint)
        resumed = analyze(original.checkpoint, again, calibration, compute_type="f32", keep=keep)
        assert resumed.scores.entropy == whole.scores.entropy
        for name, squares in whole.sums.squares.items():
            for modality, row in squares.items():
                assert (row == resumed.sums.squares[name][modality]).all(), (stop, name)
