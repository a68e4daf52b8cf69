"""Judging answers: divergences against whole vocabularies, figures against transformers, references that do not fit."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy.special import log_softmax as log_softmax_of_scipy
from scipy.special import rel_entr

from luq_gguf.activations import analyze
from luq_gguf.calibration import load_calibration
from luq_gguf.demo import CHECKPOINT
from luq_gguf.errors import ArtifactError, RequestError, RunError
from luq_gguf.families import find_family
from luq_gguf.images import MIN_IMAGE_TOKENS, Picture
from luq_gguf.judging import (
    PIECE,
    SUBSTITUTE,
    Judgement,
    _places,
    answer_tokens,
    divergences,
    judge,
    log_softmax,
    refer,
    summarize,
)
from luq_gguf.quality import Evaluator, yardstick_of_calibration
from luq_gguf.reference import TOP, Reference
from luq_gguf.runtime import Runtime
from luq_gguf.samples import CalibrationSet, Sample
from tests.families_under_test import QUESTION, SEEING, Exported, Original, export, picture
from tests.picos import FAMILIES, build_family

VOCABULARY = 40
LOGITS = arrays(np.float32, (2, VOCABULARY), elements=st.floats(-60, 60, width=32))


def distribution(logits: Any) -> NDArray[np.float64]:
    return log_softmax_of_scipy(np.asarray(logits, np.float64), axis=-1)


def top_of(said: NDArray[np.float64], count: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Log-probabilities of the best tokens, the mass of all others, and the tokens, as a reference has them."""
    order = np.argsort(-said, axis=1)
    best, others = order[:, :count], order[:, count:]
    rest = np.exp(np.take_along_axis(said, others, axis=1)).sum(axis=1)
    return np.take_along_axis(said, best, axis=1).astype(np.float32), rest.astype(np.float32), best.astype(np.int32)


def whole_divergence(said: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    return rel_entr(np.exp(said), np.exp(other)).sum(axis=1)


@settings(deadline=None, max_examples=60)
@given(LOGITS)
def test_log_probabilities_are_scipys(logits: NDArray[np.float32]) -> None:
    found = log_softmax(logits)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, distribution(logits), atol=1e-9)


@settings(deadline=None, max_examples=100)
@given(LOGITS)
def test_over_the_whole_vocabulary_it_is_the_divergence(logits: NDArray[np.float32]) -> None:
    said, other = (distribution([row]) for row in logits)
    found = divergences(*top_of(said, VOCABULARY), other)
    np.testing.assert_allclose(found, whole_divergence(said, other), rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=100)
@given(LOGITS, st.integers(1, VOCABULARY - 1))
def test_the_best_tokens_bound_it_from_below_the_better_the_more_they_are(
    logits: NDArray[np.float32], count: int
) -> None:
    said, other = (distribution([row]) for row in logits)
    fewer, more = (divergences(*top_of(said, number), other)[0] for number in (count, count + 1))
    slack = 1e-5 * (1 + abs(more))
    assert -slack <= fewer <= more + slack
    assert more <= whole_divergence(said, other)[0] + slack


def test_a_token_that_the_other_never_says_counts_beyond_rounding() -> None:
    said = np.log(np.array([[0.5, 0.5 - 1e-3, 1e-3]]))
    other = distribution([[0.0, -1000.0, -1.0]])
    assert divergences(*top_of(said, 2), other)[0] > 400
    sure = np.array([[0.0, -1000.0, -1000.0]])
    rest = (np.zeros((1, 1), np.float32), np.array([1e-3], np.float32), np.zeros((1, 1), np.int32))
    assert math.isfinite(divergences(*rest, sure)[0])
    assert divergences(*rest, sure)[0] > 0.5


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Original, Exported]:
    original = Original("qwen2.5-vl", CHECKPOINT)
    return original, export(original, tmp_path_factory.mktemp("demo"), "f16")


@pytest.fixture(scope="module")
def runtime(demo: tuple[Original, Exported]) -> Iterator[Runtime]:
    with demo[1].running() as opened:
        yield opened


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """Six of either kind, which the demo model was not trained on, and a conversation about the first image."""
    held_out = load_calibration("shapes").held_out
    chosen = [sample for kind in ("image", "question") for sample in [s for s in held_out if s.kind == kind][:6]]
    shown = chosen[0]
    turns = (("How many objects are there?", "3"), ("What color is the star?", "red"))
    return [*chosen, replace(shown, id="talk", turns=turns), Sample("texts", "What is 2 plus 3?", "5", turns=turns)]


@pytest.fixture(scope="module")
def reference(runtime: Runtime, samples: list[Sample]) -> Reference:
    return refer(runtime, samples, "demo")


def log_probabilities(original: Original, sample: Sample) -> tuple[NDArray[np.float64], list[int], int]:
    """What transformers says at every place of an answer, its tokens, and how many stand before them."""
    image = sample.picture.read() if sample.picture else None
    answer = f"{sample.answer}{original.family.turn_end}"
    given_ = original.inputs(sample.question, image, answer, sample.turns)
    ids = given_["input_ids"][0].tolist()
    count = len(original.tokenizer(answer, add_special_tokens=False).input_ids)
    with torch.inference_mode():
        logits = original.model(**given_, use_cache=False).logits[0, -1 - count : -1]
    return logits.double().log_softmax(dim=1).numpy(), ids[-count:], len(ids) - count


def test_a_file_agrees_with_itself(runtime: Runtime, samples: list[Sample], reference: Reference) -> None:
    found = judge(runtime, samples, reference)
    assert [each.kind for each in found] == [sample.kind for sample in samples]
    for each in found:
        assert each.same == each.tokens
        assert each.exact == each.reference_exact
        assert abs(each.divergence) < 1e-6 * each.tokens
    quality = summarize(found, "itself")
    assert (quality.all.agreement, quality.drop, quality.reference) == (1, 0, "itself")
    assert quality.all.figures["exact"] == quality.all.figures["reference_exact"]
    assert quality.all.figures["exact"].value > 0.5  # the demo model knows the answers, and when to stop


def test_figures_are_those_of_transformers(
    demo: tuple[Original, Exported], runtime: Runtime, samples: list[Sample], reference: Reference
) -> None:
    found = dict(zip(reference.samples, judge(runtime, samples, reference), strict=True))
    for number, sample in enumerate(samples):
        said, answer, before = log_probabilities(demo[0], sample)
        places = slice(reference.starts[number], reference.starts[number + 1])
        assert reference.answers[places].tolist() == answer
        assert reference.prompts[number] == before
        each, chosen = found[sample.id], said[range(len(answer)), answer]
        assert each.tokens == len(answer)
        assert each.surprise == pytest.approx(-chosen.sum(), abs=0.02 * len(answer), rel=0.02), sample
        sure = np.diff(np.sort(said, axis=1)[:, -2:], axis=1)[:, 0] > 0.1
        assert (reference.top[places, 0] == said.argmax(axis=1))[sure].all()
        top = np.take_along_axis(said, reference.top[places].astype(np.int64), axis=1)
        kept = reference.log_probabilities[places]
        np.testing.assert_allclose(kept[kept > -7], top[kept > -7], atol=0.1)
        np.testing.assert_allclose(reference.rest[places], 1 - np.exp(top).sum(axis=1), atol=1e-3)


def test_turns_are_part_of_the_prompt(runtime: Runtime, samples: list[Sample], reference: Reference) -> None:
    shown, talk = samples[0], next(sample for sample in samples if sample.id == "talk")
    before = dict(zip(reference.samples, reference.prompts, strict=True))
    said = "".join(f"{asked}{answered}" for asked, answered in talk.turns)
    assert before["talk"] > before[shown.id] + len(runtime.tokenize(said))
    assert not np.array_equal(
        runtime.start(talk.question, talk.picture and talk.picture.read(), talk.turns),
        runtime.start(shown.question, shown.picture and shown.picture.read()),
    )


def test_the_more_a_model_is_damaged_the_less_it_agrees(
    demo: tuple[Original, Exported], samples: list[Sample], reference: Reference, tmp_path: Path
) -> None:
    """The feed-forward parts of the last layers give less and less; transformers says how much that changes."""
    found = []
    for share in (0.9, 0.5, 0.0):
        folder = Path(shutil.copytree(CHECKPOINT, tmp_path / f"damaged-{share}"))
        weights = load_file(folder / "model.safetensors")
        for name in [name for name in weights if re.search(r"layers\.(9|10|11)\.mlp\.down_proj", name)]:
            weights[name] = weights[name] * share
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        damaged = Original("qwen2.5-vl", folder)
        with export(damaged, folder, "f32").running() as other:
            judgements = judge(other, samples, reference)
        found.append(summarize(judgements, "demo").all)
        for sample, each in zip(samples, judgements, strict=True):
            said, other_said = (log_probabilities(original, sample)[0] for original in (demo[0], damaged))
            assert each.divergence == pytest.approx(whole_divergence(said, other_said).sum(), rel=0.1, abs=0.02)
    assert found[0].agreement >= found[1].agreement > found[2].agreement
    assert 1e-5 < found[0].divergence < found[1].divergence < found[2].divergence
    for name in ("perplexity", "exact"):
        assert found[0].figures[name].value != pytest.approx(found[2].figures[name].value, rel=0.05)
    assert len({group.figures["reference_exact"] for group in found}) == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_the_reference_of_an_analysis_is_what_its_file_says(tmp_path: Path, name: str) -> None:
    """Prompts, images and answers of every family have the same tokens in the analysis and in llama.cpp."""
    original = Original(name, build_family(tmp_path / "pico", name))
    turns = (("What is there?", "a red circle"), ("Where is it?", "top left"))
    image = Picture.of(picture(*original.sizes()[0])) if name in SEEING else None
    held_out = (
        Sample("seen", QUESTION, "a green star, two dogs", image),
        Sample("talked", "What color is it?", "red", image, turns=turns),
        Sample("read", "How many?", "four"),
        Sample("long", QUESTION, "one circle, two stars and " * 20 + "nothing", image),
    )
    calibration = CalibrationSet("few", (Sample("text", text="You are an assistant. " * 8),), held_out, "digest")
    family = find_family(original.checkpoint.config, original.checkpoint)
    stored = analyze(original.checkpoint, family, calibration, compute_type="f32").reference
    assert np.diff(stored.starts).max() > PIECE
    with export(original, tmp_path, "f32").running() as running:
        assert running.turn_end == family.turn_end == stored.turn_end
        found = judge(running, held_out, stored)
        made = refer(running, held_out, name)
    figures = summarize(found, name).all.figures
    assert figures["agreement"].value > 0.97
    assert abs(figures["divergence"].value) < 1e-3
    assert dict(zip(made.samples, made.prompts, strict=True)) == dict(zip(stored.samples, stored.prompts, strict=True))
    assert sorted(made.answers) == sorted(stored.answers)


@pytest.mark.parametrize("name", ["qwen2.5-vl", "qwen3-vl"])
def test_pictures_are_judged_as_large_as_they_were_measured(tmp_path: Path, name: str) -> None:
    """A processor that enlarges small pictures more than llama.cpp does, as Qwen3-VL's, which wants 65,536 pixels."""
    folder = build_family(tmp_path / "pico", name)
    path = folder / "preprocessor_config.json"
    content = json.loads(path.read_text())
    area = {"shortest_edge": 65536, "longest_edge": 131072}
    plain = {"min_pixels": area["shortest_edge"], "max_pixels": area["longest_edge"]}
    path.write_text(json.dumps(content | ({"size": area} if "size" in content else plain)))
    original = Original(name, folder)
    held_out = tuple(
        Sample(f"{width} x {height}", QUESTION, "a green star", Picture.of(picture(width, height)))
        for width, height in ((100, 90), (64, 200), (256, 256), (700, 800))
    )
    calibration = CalibrationSet("few", (Sample("text", text="You are an assistant. " * 8),), held_out, "digest")
    stored = analyze(original.checkpoint, original.family, calibration, compute_type="f32").reference
    for sample, prompt in zip(held_out, stored.prompts, strict=True):
        assert sample.picture is not None
        given = original.inputs(QUESTION, sample.picture.read())
        assert given["input_ids"].shape[1] == prompt, sample.id
    files = export(original, tmp_path, "f32")
    yardstick = yardstick_of_calibration(name, stored, calibration)
    assert (yardstick.least_image_tokens or 0) > MIN_IMAGE_TOKENS
    for lie in (10**9, 0, -1, "64", None):
        context = stored.context | {"least_image_tokens": lie, "image_tokens": lie}
        lying = yardstick_of_calibration(name, replace(stored, context=context), calibration)
        assert (lying.least_image_tokens, lying.image_tokens) == (None, None)
    figures = Evaluator(files.mmproj, tmp_path / "work", 1).quality(files.text, yardstick).all.figures
    assert figures["agreement"].value > 0.97
    assert abs(figures["divergence"].value) < 1e-3


def test_letters_of_several_tokens_are_shown_whole(runtime: Runtime) -> None:
    """The demo's tokenizer knows few letters: all others are bytes."""
    answer = "\u201ced\u00e9\u201d \u706b \N{FIRE}"
    sample = Sample("s", "Is it fewer or less?", answer)
    (found,) = judge(runtime, [sample], refer(runtime, [sample], "itself"))
    assert found.tokens == len(found.places) > len(answer)
    assert "".join(place.answer for place in found.places) == answer + runtime.turn_end
    assert all(place.reference == place.file for place in found.places)
    assert SUBSTITUTE not in "".join(place.answer for place in found.places)
    tokens = np.array(runtime.tokenize(answer), np.int32)
    at = 1
    assert [place.answer for place in found.places[:3]] == ["", "", "\u201c"]
    other = tokens.copy()
    other[at] = runtime.tokenize("red")[0]
    places = list(_places(runtime, tokens, tokens, other.astype(np.intp)))
    assert [place.same for place in places] == [number != at for number in range(len(tokens))]
    assert (places[at].reference, places[at].file) == ("", SUBSTITUTE + runtime.piece(int(other[at])).decode())
    begins = np.array([runtime.tokenize(letter)[0] for letter in "\u201c\N{FIRE}"], np.int32)
    (place,) = _places(runtime, begins[:1], begins[:1], begins[1:].astype(np.intp))
    assert (place.reference, place.file, place.same) == ("", SUBSTITUTE, False)


def changed(reference: Reference, number: int, **arrays: Any) -> Reference:
    """A reference in which an element of each of these arrays is another."""
    made = {name: getattr(reference, name).copy() for name in arrays}
    for name, value in arrays.items():
        made[name][number] = value
    return replace(reference, **made)


def test_a_reference_that_does_not_fit_is_refused(
    runtime: Runtime, samples: list[Sample], reference: Reference
) -> None:
    first, more = reference.samples[0], samples[1:]
    asked, answered, talked = (
        replace(samples[0], **change)
        for change in ({"question": "Really?"}, {"answer": "none"}, {"turns": (("a", "b"),)})
    )
    wrong: list[tuple[list[Sample], Reference, str]] = [
        (more, reference, f"1 samples of the reference are not in this data, the first is {first}"),
        ([], reference, f"{len(samples)} samples of the reference are not"),
        ([answered, *more], reference, f"other tokens for the answer of sample {first}"),
        ([asked, *more], reference, f"the prompt of sample {first} has "),
        ([talked, *more], reference, f"the prompt of sample {first} has "),
        (samples, changed(reference, 0, prompts=7), "tokens, the reference says 7"),
        (samples, changed(reference, 0, answers=3), f"other tokens for the answer of sample {first}"),
        (samples, changed(reference, 0, top=700), "a token 700, the model has 512"),
        (samples, replace(reference, context={}), "other tokens for the answer"),
    ]  # fmt: skip
    for given_samples, given_reference, words in wrong:
        with pytest.raises(ArtifactError, match=words) as caught:
            judge(runtime, given_samples, given_reference)
        assert "--ref" in str(caught.value)


@pytest.mark.parametrize("family", ["gemma-3", "llava-1.5", "llama"])
def test_a_reference_of_another_familys_model_is_refused(
    family: str, samples: list[Sample], reference: Reference, tmp_path: Path
) -> None:
    original = Original(family, build_family(tmp_path / "pico", family))
    with export(original, tmp_path, "f16").running() as other, pytest.raises(ArtifactError, match=r"tokens"):
        judge(other, samples, reference)


def test_images_need_a_vision_part(
    demo: tuple[Original, Exported], samples: list[Sample], reference: Reference
) -> None:
    with Runtime(demo[1].text, threads=1, context=1024) as blind:
        assert not blind.sees
        with pytest.raises(RunError, match="--mmproj"):
            judge(blind, samples, reference)


def test_without_answers_there_is_nothing_to_judge_by(runtime: Runtime) -> None:
    with pytest.raises(RequestError, match="none of the samples has an answer"):
        refer(runtime, [Sample("open", "Where are you?"), Sample("text", text="Some words.")], "demo")
    with pytest.raises(RequestError, match="no answer to judge by"):
        summarize([], "demo")


def test_samples_without_an_answer_are_left_out_of_a_reference(runtime: Runtime) -> None:
    mixed = [Sample("open", "Where?"), Sample("closed", "Is there a cat?", "no"), Sample("text", text="Some words.")]
    made = refer(runtime, mixed, "demo")
    assert (made.samples, len(made.prompts)) == (("closed",), 1)
    assert made.answers.tolist() == answer_tokens(runtime, mixed[1], "<|im_end|>") == runtime.tokenize("no<|im_end|>")
    assert made.top.shape == made.log_probabilities.shape == (len(made.answers), TOP)
    assert len(judge(runtime, mixed, made)) == 1


def test_figures_are_of_tokens_and_of_answers() -> None:
    """Two answers about images of 3 and 1 tokens and one without, worked by hand."""
    found = [
        Judgement("image", 3, 2, 0.6, 3 * math.log(2), exact=False, reference_exact=True),
        Judgement("image", 1, 1, 0.2, 0.0, exact=True, reference_exact=True),
        Judgement("question", 4, 1, 4.0, 5 * math.log(2), exact=False, reference_exact=False),
    ]
    quality = summarize(found, "by hand")
    figures = {
        name: {figure: estimate.value for figure, estimate in group.figures.items()}
        for name, group in quality.groups.items()
    }
    assert figures["all"] == pytest.approx(
        {"agreement": 0.5, "divergence": 0.6, "perplexity": 2.0, "exact": 1 / 3, "reference_exact": 2 / 3}
    )
    assert figures["image"] == pytest.approx(
        {"agreement": 0.75, "divergence": 0.2, "perplexity": 2**0.75, "exact": 0.5, "reference_exact": 1}
    )
    assert figures["question"]["perplexity"] == pytest.approx(2**1.25)
    assert [(group.samples, group.tokens) for group in quality.groups.values()] == [(3, 8), (2, 4), (1, 4)]
    assert quality.drop == 0.5
    assert summarize(found[:2], "seen").groups.keys() == {"all", "image"}
