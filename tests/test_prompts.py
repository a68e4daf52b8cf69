"""Prompts are token for token those of transformers, and hostile templates and texts are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoTokenizer

from luq_gguf.artifacts import MODALITIES
from luq_gguf.calibration import load_calibration
from luq_gguf.chat import render_chat
from luq_gguf.checkpoint import Checkpoint
from luq_gguf.errors import CalibrationError, CheckpointError
from luq_gguf.families import find_family
from luq_gguf.images import Picture, fitted_size, token_limits
from luq_gguf.prompts import PromptMaker, read_template
from luq_gguf.samples import Sample
from tests.pico import CHAT_TEMPLATE, build_pico

IMAGE_TOKEN, END_TOKEN = "<|image_pad|>", "<|im_end|>"


def maker_of(folder: Path) -> PromptMaker:
    checkpoint = Checkpoint.open(folder)
    family = find_family(checkpoint.config, checkpoint)
    return PromptMaker(checkpoint, family)


@pytest.fixture(scope="module")
def maker(pico_checkpoint: Path) -> PromptMaker:
    return maker_of(pico_checkpoint)


@pytest.fixture(scope="module")
def tokenizer(pico_checkpoint: Path):
    return AutoTokenizer.from_pretrained(pico_checkpoint)


@pytest.fixture
def folder(pico_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pico_checkpoint, tmp_path / "pico"))


def expected_ids(tokenizer, sample: Sample, image_tokens: int = 0) -> list[int]:
    """Transformers' own conversation, question and answer, with the place of the image filled."""
    content = [{"type": "text", "text": sample.question}]
    if sample.picture is not None:
        content.insert(0, {"type": "image"})
    messages = [{"role": "user", "content": content}]
    opened = sample.answer is None
    if not opened:
        messages.append({"role": "assistant", "content": sample.answer})
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=opened, return_dict=False)
    place = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    filled = [token for one in ids for token in ([one] * image_tokens if one == place else [one])]
    return filled if opened else filled[:-1]  # the line break after the answer's end belongs to the next turn


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<|>"), min_size=1, max_size=60))
def test_questions_become_transformers_tokens(maker, tokenizer, question):
    sample = Sample("s", question)
    (found,) = maker.tokenize(sample)
    assert found.ids.tolist() == expected_ids(tokenizer, sample)
    assert (found.kinds == MODALITIES.index("text")).all()
    assert (found.picture, found.grid, found.answer_tokens) == (None, None, 0)


@pytest.mark.parametrize(("size", "grid"), [((112, 112), (4, 4)), ((140, 84), (3, 5)), ((400, 150), (5, 14))])
def test_an_image_fills_its_place(maker, tokenizer, size, grid):
    sample = Sample("s", "What is in the picture?", "a red circle", Picture.of(Image.new("RGB", size, "red")))
    (found,) = maker.tokenize(sample)
    count = grid[0] * grid[1]
    assert found.grid == grid
    assert found.picture is not None
    assert found.picture.read().size == (28 * grid[1], 28 * grid[0])
    assert found.ids.tolist() == expected_ids(tokenizer, sample, count)
    is_image = found.kinds == MODALITIES.index("image")
    assert is_image.sum() == count
    assert (found.ids[is_image] == tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)).all()
    assert (found.kinds[~is_image] == MODALITIES.index("multimodal_text")).all()


@pytest.mark.parametrize("most", [40, 40.7, 300, 5000])
def test_the_number_of_tokens_tells_how_large_images_were_made(folder: Path, most: float):
    """To who runs the file: llama.cpp knows nothing of the preprocessor's limit."""
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_pixels": int(most * 28**2)}))
    maker = maker_of(folder)
    assert maker.image_tokens == min(int(most), maker.longest // 2)
    told = token_limits(28, maker.image_tokens)
    for size in ((532, 756), (2000, 1500), (1500, 60), (3000, 2900)):
        picture = Picture.of(Image.new("RGB", size))
        (found,) = maker.tokenize(Sample("s", "What?", "That.", picture))
        assert found.grid == tuple(side // 28 for side in reversed(fitted_size(*size, told)))


def test_the_answer_is_at_the_end_with_its_end_token(maker, tokenizer):
    sample = Sample("s", "How many?", "four things")
    (found,) = maker.tokenize(sample)
    answer = tokenizer(sample.answer + END_TOKEN, add_special_tokens=False)["input_ids"]
    assert found.answer_tokens == len(answer)
    assert found.ids[-len(answer) :].tolist() == answer
    assert found.ids.tolist() == expected_ids(tokenizer, sample)


def test_a_long_text_is_cut_into_samples_that_lose_nothing(maker, tokenizer):
    text = "You are a helpful assistant. " * 400
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = maker.tokenize(Sample("t", text=text))
    assert [piece.id for piece in pieces] == ["t", *(f"t/{number}" for number in range(1, len(pieces)))]
    assert all(len(piece.ids) <= maker.longest == 1024 for piece in pieces)
    assert np.concatenate([piece.ids for piece in pieces]).tolist() == ids
    assert len(maker.all_of([Sample("a", "Who?"), Sample("t", text=text)])) == 1 + len(pieces)


@pytest.mark.parametrize(
    "sample",
    [
        Sample("s", f"What is {IMAGE_TOKEN}?"),
        Sample("s", "Who?", IMAGE_TOKEN),
        Sample("s", f"What is {IMAGE_TOKEN}?", picture=Picture.of(Image.new("RGB", (112, 112)))),
        Sample("s", text=f"before {IMAGE_TOKEN} after"),
        Sample("s", "word " * 2000),
    ],
)
def test_image_tokens_in_texts_and_endless_questions_are_refused(maker, sample):
    with pytest.raises(CalibrationError, match="sample s has") as caught:
        maker.tokenize(sample)
    assert caught.value.hint


def test_a_template_that_forgets_the_image_is_refused(folder: Path):
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'][-1]['text'] }}")
    with pytest.raises(CalibrationError, match="0 image tokens"):
        maker_of(folder).tokenize(Sample("s", "Who?", picture=Picture.of(Image.new("RGB", (112, 112)))))


def test_both_forms_of_a_checkpoint_have_the_same_template(pico_checkpoint: Path, tmp_path: Path):
    nested = build_pico(tmp_path / "nested", form="transformers5")
    assert read_template(Checkpoint.open(nested)) == CHAT_TEMPLATE
    assert read_template(Checkpoint.open(pico_checkpoint)) == CHAT_TEMPLATE


def test_a_list_of_templates_gives_the_default_one(folder: Path):
    (folder / "chat_template.json").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert read_template(Checkpoint.open(folder)) == "yes"


@pytest.mark.parametrize(
    "template",
    [
        "",
        "{% for %}",
        "{{ messages[7].content.parts }}",
        "{{ raise_exception('only tools are allowed') }}",
        "{{ 1 / 0 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% for i in range(99999999) %}x{% endfor %}",
        "{{ messages.append(1) }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{% include 'secrets' %}",
        "{{ messages[0] + 1 }}",
    ],
)
def test_templates_that_fail_or_break_out_are_one_clear_error(template):
    with pytest.raises(CheckpointError, match="chat template") as caught:
        render_chat(template, [{"role": "user", "content": "Who?"}])
    assert "\n" not in str(caught.value)


def test_templates_have_what_transformers_gives_them(tokenizer):
    template = (
        "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}\n"
        "    {% set text = m.content | tojson %}\n{{ text }}{{ strftime_now('%Y')[:2] }}\n{% endfor %}"
        "{% if tools is defined and tools %}tools{% endif %}{% if add_generation_prompt %}go{% endif %}"
    )
    messages = [{"role": "user", "content": 'a <é> "b"'}, {"role": "user", "content": "never"}]
    for opened in (True, False):
        expected = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=opened
        )
        assert render_chat(template, messages, answer_next=opened) == expected


def test_saved_truncation_and_padding_do_not_reach_the_samples(folder: Path, maker):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 600}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "!",
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content))
    sample = Sample("s", "What is in the picture?", "a red circle")
    assert maker_of(folder).tokenize(sample)[0].ids.tolist() == maker.tokenize(sample)[0].ids.tolist()


def test_unusable_tokenizers_are_named(folder: Path):
    content = json.loads((folder / "tokenizer.json").read_text())
    next(token for token in content["added_tokens"] if token["content"] == IMAGE_TOKEN)["content"] = "<|another|>"
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"has no <\|image_pad\|>"):
        maker_of(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is no valid JSON"):
        maker_of(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        maker_of(folder)


def test_a_template_that_is_no_text_is_named(folder: Path):
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match=r"cannot read .*chat_template\.jinja"):
        read_template(Checkpoint.open(folder))


def test_the_built_in_set_has_the_tokens_for_all_clusters(maker):
    samples = maker.all_of(load_calibration("shapes").samples)
    kinds = np.concatenate([sample.kinds for sample in samples])
    texts = int((kinds == MODALITIES.index("text")).sum())
    assert min(texts, len(kinds) - texts) >= 1000
    assert len({sample.id for sample in samples}) == len(samples)


def unreadable() -> Image.Image:
    raise AssertionError("it was read")


def test_pictures_are_not_read_for_their_tokens(maker):
    (found,) = maker.tokenize(Sample("s", "What?", picture=Picture("a", "k", unreadable, (112, 84))))
    assert found.grid == (3, 4)
    with pytest.raises(AssertionError, match="it was read"):
        found.picture.read()


def test_samples_that_do_not_fit_are_named_by_their_place_or_left_out(maker):
    narrow = Sample("n", "What?", picture=Picture("a", "k", unreadable, (4, 900)), origin="rows.jsonl:7")
    long = Sample("l", "word " * 2000, origin="rows.jsonl:8")
    fine = Sample("f", "Who?")
    for sample, words in ((narrow, r"rows\.jsonl:7: .* too narrow"), (long, r"rows\.jsonl:8: sample l has \d+ tokens")):
        with pytest.raises(CalibrationError, match=words):
            maker.all_of([fine, sample])
    left_out: list[str] = []
    assert [piece.id for piece in maker.all_of([narrow, fine, long], left_out)] == ["f"]
    assert [reason.partition(": ")[0] for reason in left_out] == ["rows.jsonl:7", "rows.jsonl:8"]
