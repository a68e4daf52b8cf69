"""One row of calibration data, in any of the common forms -> a sample.

A row is a JSON object, a line of a table or an entry of a parquet file with some of KEYS; it knows where
it stands. Knows nothing of files, but for the images that a row names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luq_gguf.errors import CalibrationError, ImageError
from luq_gguf.images import Picture, load_image
from luq_gguf.samples import Sample

KEYS = ("image", "images", "question", "answer", "answers", "text", "conversations", "messages")
FORMS = '{"image", "question", "answer"}, {"question", "answer"}, {"text"} or {"image", "conversations"}'
HINT = f"write rows like {FORMS}"
ASKING, ANSWERING = {"human", "user"}, {"gpt", "assistant"}
MARKER = "<image>"
"""What LLaVA's data put where the image stands; chat templates have marks of their own."""


@dataclass(frozen=True)
class Row:
    """What one row holds: its known values, where it stands, and the folder below which its images lie."""

    content: Mapping[str, Any]
    where: str
    folder: Path

    def sample(self) -> Sample:
        """The sample of this row; raises CalibrationError with its place where it cannot be used."""
        known = {key: value for key in KEYS if not _is_empty(value := self.content.get(key))}
        if "text" in known:
            if len(known) > 1:
                raise self.wrong(f"has the keys {sorted(known)}")
            return self._named(Sample("", text=self._text("text", known["text"])))
        turns = self._turns(known)
        question, answer = turns[-1]
        picture = self._picture(known)
        earlier = tuple((asked, said) for asked, said in turns[:-1] if said is not None)
        return self._named(Sample("", question, answer, picture, turns=earlier))

    def wrong(self, what: str, hint: str = HINT) -> CalibrationError:
        """The error for this row."""
        return CalibrationError(f"{self.where}: {what}", hint=hint)

    def _named(self, sample: Sample) -> Sample:
        key = sample.picture.key if sample.picture else None
        content = json.dumps([sample.turns, sample.question, sample.answer, sample.text, key])
        name = hashlib.sha256(content.encode()).hexdigest()[:16]
        return Sample(
            name, sample.question, sample.answer, sample.picture, sample.text, turns=sample.turns, origin=self.where
        )

    def _turns(self, known: Mapping[str, Any]) -> list[tuple[str, str | None]]:
        """Questions and answers, the last answer perhaps missing."""
        given = [key for key in ("question", "conversations", "messages") if key in known]
        if len(given) != 1:
            raise self.wrong(f"has the keys {sorted(known)}")
        if given != ["question"]:
            return self._conversation(known[given[0]])
        answer = known.get("answer", known.get("answers"))
        if isinstance(answer, list):
            answer = answer[0]
        said = None if answer is None else self._text("answer", answer)
        return [(self._text("question", known["question"]), said)]

    def _conversation(self, messages: object) -> list[tuple[str, str | None]]:
        """Questions and answers that take turns; a system message gives way to the template's own."""
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise self.wrong("its conversation is no list of messages")
        said = [(str(m.get("from", m.get("role"))), m.get("value", m.get("content"))) for m in messages]
        if said and said[0][0] == "system":
            said = said[1:]
        turns: list[tuple[str, str | None]] = []
        for number, (speaker, value) in enumerate(said):
            if speaker not in (ANSWERING if number % 2 else ASKING):
                raise self.wrong(f"message {number + 1} is from {speaker[:40]!r}: question and answer must take turns")
            text = self._text(f"message {number + 1}", self._plain(value))
            if number % 2:
                turns[-1] = (turns[-1][0], text)
            else:
                turns.append((text, None))
        if not turns:
            raise self.wrong("its conversation is empty")
        return turns

    def _plain(self, value: object) -> object:
        """The text of a message, without the place of its image; parts of a message are put together."""
        if isinstance(value, list):
            parts = [part.get("text") for part in value if isinstance(part, dict) and part.get("type") == "text"]
            value = "\n".join(part for part in parts if isinstance(part, str))
        if not isinstance(value, str):
            return value
        if value.count(MARKER) > 1:
            raise self.wrong("has more than one image", "take rows with one image")
        return value.replace(MARKER, "").strip()

    def _text(self, what: str, value: object) -> str:
        """Text that is not blank, without halves of surrogate pairs, which no tokenizer takes."""
        sound = isinstance(value, str) and value.strip() and not any("\ud800" <= one <= "\udfff" for one in value)
        if not isinstance(value, str) or not sound:
            raise self.wrong(f"{what} is no text")
        return value

    def _picture(self, known: Mapping[str, Any]) -> Picture | None:
        image = known.get("image", known.get("images"))
        if isinstance(image, list):
            if len(image) > 1:
                raise self.wrong(f"has {len(image)} images", "take rows with one image")
            image = image[0]
        if isinstance(image, dict):  # how the datasets library stores an image
            image = image.get("bytes") or image.get("path")
        if image is None:
            return None
        try:
            if isinstance(image, bytes):
                return embedded_picture(image, "its image")
            return stored_picture(self.folder, self._text("image", image))
        except ImageError as error:
            raise ImageError(f"{self.where}: {error.message}", path=error.path, hint=error.hint) from error
        except CalibrationError as error:
            raise error if error.message.startswith(self.where) else self.wrong(error.message, error.hint) from error


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, Sequence) and len(value) == 0 and not isinstance(value, str))


def embedded_picture(data: bytes, name: str) -> Picture:
    """An image that came within a row, kept encoded; raises ImageError where it cannot be read."""
    load_image(data, name)
    return Picture(name, hashlib.sha256(data).hexdigest(), lambda: load_image(data, name))


def stored_picture(folder: Path, name: str) -> Picture:
    """An image below a folder, read once to see that it can be, and again when it is needed.

    Raises ImageError where it cannot, CalibrationError where its path leads out of the folder.
    """
    if "://" in name[:12]:
        raise CalibrationError(f"{name[:80]} is an address", hint="download the image and name its file")
    home = folder.resolve()
    try:
        path = (home / name).resolve()
        if not path.is_relative_to(home):
            raise CalibrationError(f"{name} leads out of the file's folder", hint="put images beside the file")
        load_image(path, name)
        with path.open("rb") as handle:
            key = hashlib.file_digest(handle, "sha256").hexdigest()
    except (OSError, ValueError, RuntimeError) as error:  # a path that cannot be resolved
        raise CalibrationError(f"{name!r} is no path: {error}", hint="give the path of an image") from error
    return Picture(name, key, lambda: load_image(path, name))
