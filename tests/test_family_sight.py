"""What every family sees and says in llama.cpp, held against transformers in float32 on the same pixels."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, LlamaForCausalLM

from luq_gguf.errors import RequestError
from luq_gguf.families.llava_layouts import LAYOUTS
from luq_gguf.runtime import Runtime
from tests.families_under_test import (
    QUESTION,
    READING,
    SEEING,
    Original,
    cosine,
    export,
    features_in_llama_cpp,
    picture,
)
from tests.picos import build_family

LONGER = "how many red circles, blue squares and green stars are there?"


@pytest.fixture(scope="module", params=SEEING)
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Original:
    return Original(
        request.param, build_family(tmp_path_factory.mktemp(request.param) / "pico", request.param, shards=3)
    )


@pytest.fixture(scope="module", params=["f16", "bf16"])
def runtime(original: Original, request: pytest.FixtureRequest, tmp_path_factory) -> Iterator[Runtime]:
    with ExitStack() as stack:
        files = export(original, tmp_path_factory.mktemp("files"), request.param)
        yield stack.enter_context(files.running())


def test_image_features_and_logits_are_those_of_transformers(original: Original, runtime: Runtime) -> None:
    for size in original.sizes():
        image = picture(*size)
        found, wanted = features_in_llama_cpp(runtime, image), original.features(image)
        assert found.shape == wanted.shape, size
        assert cosine(found, wanted).min() > 0.999, size
        assert cosine(runtime.start(QUESTION, image), original.logits(QUESTION, image)) > 0.999, size


def test_another_picture_changes_features_and_logits(original: Original, runtime: Runtime) -> None:
    size = original.sizes()[0]
    one, other = picture(*size), picture(*size, seed=7)
    features = [features_in_llama_cpp(runtime, image) for image in (one, other)]
    assert cosine(*features).min() < 0.999
    logits = [runtime.start(QUESTION, image) for image in (one, other)]
    wanted = [original.logits(QUESTION, image) for image in (one, other)]
    change, expected = logits[1] - logits[0], wanted[1] - wanted[0]
    assert np.abs(change).max() > 0.05 * np.abs(logits[0]).max()
    assert cosine(change, expected) > 0.98


def test_a_question_without_a_picture(original: Original, runtime: Runtime) -> None:
    assert cosine(runtime.start(LONGER), original.logits(LONGER)) > 0.999


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("name", READING)
def test_text_models_say_what_they_say_in_transformers(tmp_path: Path, name: str, dtype: str) -> None:
    original = Original(name, build_family(tmp_path / "pico", name, shards=2))
    files = export(original, tmp_path, dtype)
    assert files.mmproj is None
    with files.running() as runtime:
        for question in (QUESTION, LONGER):
            assert cosine(runtime.start(question), original.logits(question)) > 0.999


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Original:
    """With as many patches as the real one."""
    folder = build_family(tmp_path_factory.mktemp("llava-336") / "pico", "llava-1.5", image_size=336)
    return Original("llava-1.5", folder)


def rows_of(original: Original, folder: Path, layout: str, size: tuple[int, int]) -> np.ndarray:
    """The likeness of every row of features to transformers' own."""
    image = picture(*size)
    with export(original, folder, "f16", layout).running() as runtime:
        return cosine(features_in_llama_cpp(runtime, image), original.features(image))


def test_llavas_default_layout_is_exact_and_the_best(llava: Original, tmp_path: Path) -> None:
    small = Original("llava-1.5", build_family(tmp_path / "small", "llava-1.5"))
    for original, size in ((small, (56, 56)), (llava, (336, 336))):
        found = {layout: rows_of(original, tmp_path, layout, size) for layout in LAYOUTS}
        assert original.family.layout == LAYOUTS[0] == "exact"
        assert found["exact"].min() > 0.99999
        assert found["exact"].min() > found["no-class"].min() > found["standard"].min()


def test_llavas_standard_layout_loses_the_first_patch_and_hands_out_the_class_token(
    llava: Original, tmp_path: Path
) -> None:
    """The defect that the exact layout is made for: where this fails, llama.cpp has mended it."""
    assert rows_of(llava, tmp_path, "standard", (336, 336)).min() < 0.9


def test_a_layout_that_a_family_has_not_is_refused(llava: Original) -> None:
    with pytest.raises(RequestError, match=r"no layout 'wide'; known are exact, no-class, standard"):
        llava.family.choose_layout("wide")


def test_heads_too_small_to_tell_tokens_apart_leave_the_class_token_out(tmp_path: Path) -> None:
    """577 tokens need 19 channels a head; those of the published models have 64."""
    from luq_gguf.families import find_family
    from tests.published import LLAVA_7B, merged

    family = find_family(merged(LLAVA_7B, vision_config={"num_attention_heads": 64}))
    assert family.layouts == ("no-class", "standard")
    assert family.layout == "no-class"


def test_a_llama_with_a_sentencepiece_tokenizer(tmp_path: Path) -> None:
    """LLaMA 1 and 2 and Vicuna: LLaVA's decoder as a checkpoint of its own."""
    llava = build_family(tmp_path / "llava", "llava-1.5")
    whole = AutoModelForImageTextToText.from_pretrained(llava, dtype=torch.float32)
    plain = LlamaForCausalLM(whole.config.text_config)
    plain.model.load_state_dict(whole.model.language_model.state_dict())
    plain.lm_head.load_state_dict(whole.lm_head.state_dict())
    plain.save_pretrained(tmp_path / "plain")
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "added_tokens.json"):
        shutil.copy(llava / name, tmp_path / "plain")
    template = "{% for m in messages %}{{ m['role'].upper() + ': ' + m['content'] + ' ' }}{% endfor %}ASSISTANT:"
    (tmp_path / "plain" / "chat_template.jinja").write_text(template)
    original = Original("llama", tmp_path / "plain")
    assert original.family.tokenizer_pattern is None
    with export(original, tmp_path, "f16").running() as runtime:
        for question in (QUESTION, LONGER):
            assert cosine(runtime.start(question), original.logits(question)) > 0.999
