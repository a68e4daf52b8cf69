"""One row of calibration data -> a sample whose image has not been looked at yet.

Takes a row's values as JSON or parquet gives them, whatever file it stood in. Knows the forms of questions with
answers, of LLaVA's conversations, of chat messages, of the hub's `texts`, of descriptions and plain texts.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luq_gguf.calibration_images import Looker, StoredImage, image_below
from luq_gguf.errors import CalibrationError, ImageError
from luq_gguf.samples import Sample

TALKS = ("conversations", "messages", "texts")
DESCRIPTIONS = ("text", "caption")
KEYS = ("image", "images", "question", "answer", "answers", *DESCRIPTIONS, *TALKS)
FORMS = '{"image", "question", "answer"}, {"question", "answer"}, {"text"} or {"image", "conversations"}'
HINT = f"write rows like {FORMS}"
ONE_IMAGE = "take rows with one image"
ASKING, ANSWERING = {"human", "user"}, {"gpt", "assistant", "model"}
MARKER = "<image>"
"""What LLaVA's data put where the image stands; chat templates have marks of their own."""
DESCRIBE = "Describe this image."
MAX_ROWS = 2_000_000
"""Each takes about 800 bytes of memory; the largest sets of instructions in use have under a million rows a file."""
SHOWN_KEYS, SHOWN_NAME = 20, 40

Turns = list[tuple[str, str | None]]


@dataclass(frozen=True)
class Draft:
    """A sample that may lack its picture yet; its id follows from what the row says, not from where it stands."""

    sample: Sample
    image: StoredImage | None = None

    @property
    def id(self) -> str:
        """The sample's."""
        return self.sample.id

    @property
    def kind(self) -> str:
        """The kind of the sample that it becomes."""
        return "image" if self.image is not None else self.sample.kind

    def named(self, name: str) -> Draft:
        """The same under another id."""
        return replace(self, sample=replace(self.sample, id=name))

    def finish(self, looker: Looker) -> Sample:
        """The sample with its picture; raises CalibrationError, with the row's place, where that cannot be read."""
        if self.image is None:
            return self.sample
        try:
            return replace(self.sample, picture=looker.picture(self.image))
        except CalibrationError as error:
            raise located(self.sample.origin, error) from error


def located(where: str, error: CalibrationError) -> CalibrationError:
    """The same error with the place of the row before it."""
    message = f"{where}: {error.message}"
    if isinstance(error, ImageError):
        return ImageError(message, path=error.path, hint=error.hint)
    return CalibrationError(message, hint=error.hint)


def draft_of(content: object, where: str, folder: Path) -> Draft | CalibrationError:
    """The draft of a row whose image paths begin in `folder`, or what is wrong with the row."""
    try:
        if not isinstance(content, Mapping):
            raise CalibrationError("is no object", hint=HINT)
        return _draft(content, where, folder)
    except CalibrationError as error:
        return located(where, error)


def _draft(content: Mapping[str, Any], where: str, folder: Path) -> Draft:
    known = {key: value for key in KEYS if not _is_empty(value := content.get(key))}
    image = _image([known.pop(key) for key in ("image", "images") if key in known], folder)
    said = [key for key in ("question", *DESCRIPTIONS, *TALKS) if key in known]
    if len(said) != 1 or (said != ["question"] and len(known) != 1):
        raise CalibrationError(f"has the keys {sorted(map(str, content))[:SHOWN_KEYS]}", hint=HINT)
    form, value = said[0], known[said[0]]
    if form in DESCRIPTIONS and image is None:
        return _identified(Sample("", text=text_of(form, value), origin=where), None)
    if form in DESCRIPTIONS:
        turns: Turns = [(DESCRIBE, text_of(form, value[0] if isinstance(value, list) else value))]
    elif form == "question":
        turns = [(text_of("question", value), _answer(known.get("answer", known.get("answers"))))]
    elif form == "texts":
        turns = _pairs(value)
    else:
        turns, image = _conversation(value, image, folder)
    *before, (question, answer) = _without_marker(turns, image)
    earlier = tuple((asked, said or "") for asked, said in before)
    return _identified(Sample("", question, answer, turns=earlier, origin=where), image)


def _identified(sample: Sample, image: StoredImage | None) -> Draft:
    identity = image.identity if image else None
    content = json.dumps([sample.turns, sample.question, sample.answer, sample.text, identity])
    return Draft(replace(sample, id=hashlib.sha256(content.encode()).hexdigest()[:16]), image)


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, list | tuple) and not value)


def text_of(what: str, value: object) -> str:
    """A text that is not blank, without halves of surrogate pairs, which no tokenizer takes, and NULs."""
    if not isinstance(value, str) or not value.strip():
        raise CalibrationError(f"{what} is no text", hint=HINT)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise CalibrationError(f"{what} is no text that UTF-8 can hold", hint="save it as UTF-8") from error
    if "\0" in value:
        raise CalibrationError(f"{what} is no text: it has NUL characters", hint="take those characters out")
    return value


def _answer(value: object) -> str | None:
    """The answer as text; of several the most frequent, and of those the first."""
    if isinstance(value, dict):
        value = value.get("text", value.get("answer"))
    several = [_one_answer(one) for one in (value if isinstance(value, list) else [value])]
    given = Counter(one for one in several if one is not None)
    return given.most_common(1)[0][0] if given else None


def _one_answer(value: object) -> str | None:
    if isinstance(value, dict):
        value = value.get("answer")
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        value = str(value)
    return None if value is None or value == "" else text_of("answer", value)


def _image(values: list[Any], folder: Path) -> StoredImage | None:
    """The one image of a row: a path, what a reader of tables took out of it, or the form of the hub's data sets."""
    found = [one for value in values for one in (value if isinstance(value, list) else [value]) if one is not None]
    if len(found) > 1:
        raise CalibrationError(f"has {len(found)} images", hint=ONE_IMAGE)
    if not found:
        return None
    value = found[0]
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path") or value.get("url")
    if isinstance(value, StoredImage):
        return value
    return image_below(folder, text_of("image", value))


def _pairs(value: object) -> Turns:
    """The hub's `texts`: a list of objects with "user" and "assistant"."""
    if not isinstance(value, list) or not all(isinstance(pair, dict) for pair in value):
        raise CalibrationError("its texts are no list of questions and answers", hint=HINT)
    return [(text_of("user", pair.get("user")), text_of("assistant", pair.get("assistant"))) for pair in value]


def _conversation(messages: object, image: StoredImage | None, folder: Path) -> tuple[Turns, StoredImage | None]:
    """Questions and answers that take turns; a system message gives way to the template's own.

    An image may be named within a message's parts.
    """
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise CalibrationError("its conversation is no list of messages", hint=HINT)
    said = [(str(_first(message, "from", "role")), _first(message, "value", "content")) for message in messages]
    if said and said[0][0] == "system":
        said = said[1:]
    turns: Turns = []
    named: list[Any] = []
    for number, (speaker, value) in enumerate(said):
        if speaker not in (ANSWERING if number % 2 else ASKING):
            who = f"message {number + 1} is from {speaker[:SHOWN_NAME]!r}"
            raise CalibrationError(f"{who}: question and answer must take turns", hint=HINT)
        text = text_of(f"message {number + 1}", _plain(value, named))
        if number % 2:
            turns[-1] = (turns[-1][0], text)
        else:
            turns.append((text, None))
    if not turns:
        raise CalibrationError("its conversation is empty", hint=HINT)
    return turns, _image([image, *named], folder)


def _first(message: Mapping[str, Any], *keys: str) -> Any:
    """The value of the first of the keys that is there; parquet fills the others with nothing."""
    return next((message[key] for key in keys if message.get(key) is not None), None)


def _plain(value: object, named: list[Any]) -> object:
    """The text of a message; that of parts is put together, with a marker where an image stands."""
    if not isinstance(value, list):
        return value
    lines = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            lines.append(part.get("text"))
        elif kind in ("image", "image_url"):
            lines.append(MARKER)
            source = _first(part, "image", "image_url", "path", "url")
            named.append(source)
        else:
            raise CalibrationError(f"has a part of the kind {str(kind)[:SHOWN_NAME]!r}", hint="take texts and images")
    if not all(isinstance(line, str) for line in lines):
        raise CalibrationError("has a part without text", hint=HINT)
    return "\n".join(lines)


def _without_marker(turns: Turns, image: StoredImage | None) -> Turns:
    """The turns without the marker of the image, which belongs to the first question."""
    asked = [question for question, _ in turns]
    places = [number for number, question in enumerate(asked) for _ in range(question.count(MARKER))]
    if image is None:
        stripped = [question.strip() for question in asked]
        if any(question.startswith(MARKER) or question.endswith(MARKER) for question in stripped):
            raise CalibrationError(f"has {MARKER} in a question, but names no image", hint='add its path as "image"')
        return turns  # where it stands within a question they talk about markup
    if len(places) > 1:
        raise CalibrationError("has more than one image", hint=ONE_IMAGE)
    if places not in ([], [0]):
        raise CalibrationError("shows its image in a later question", hint="take rows that begin with the image")
    if not places:
        return turns
    question = text_of("its question", asked[0].replace(MARKER, "").strip())
    return [(question, turns[0][1]), *turns[1:]]
