"""The built-in calibration set: pictures of the kinds that people ask about, with questions, and texts.

Nothing comes in but this package's own files; samples go out, always the same ones in the same order.
Pictures are drawn when they are read, not when they are listed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
from importlib import resources

import PIL
from PIL import features

from luq_gguf.calibration_set import bills, charts, documents, pages, photos, screens, signs, sketches, tables, texts
from luq_gguf.calibration_set.item import Item
from luq_gguf.images import Picture
from luq_gguf.samples import Sample

SET_VERSION = "1"
"""Changes when the set is to count as another although its files are the same."""
ORIGIN = "built-in set"
MODULES = (documents, bills, charts, tables, screens, pages, signs, sketches, photos)
"""Each gives the items of a kind of picture, or a part of them."""


def built_in_samples() -> list[Sample]:
    """Every sample of the set: pictures with questions, kind by kind, then texts."""
    source = _digest_of_source()
    samples = []
    for module in MODULES:
        for number, item in enumerate(module.items()):
            samples += _samples_of(item, source, in_one=number % 2 == 1)
    return samples + texts.samples(ORIGIN)


def _samples_of(item: Item, source: str, *, in_one: bool) -> list[Sample]:
    """A sample a question, or one sample (`in_one`) where the second question follows the first's answer."""
    key = hashlib.sha256(f"{source} {item.name}".encode()).hexdigest()
    picture = Picture(item.name, key, item.draw)
    if in_one:
        question, answer = item.questions[-1]
        return [Sample(f"{item.name}-1", question, answer, picture, turns=item.questions[:-1], origin=ORIGIN)]
    return [
        Sample(f"{item.name}-{number}", question, answer, picture, origin=ORIGIN)
        for number, (question, answer) in enumerate(item.questions, start=1)
    ]


def _digest_of_source() -> str:
    """What every picture follows from: this package's modules, and the versions of what draws."""
    versions = (
        SET_VERSION,
        sys.version_info[:2],  # the same seed may give other chances in another Python
        PIL.__version__,
        features.version("freetype2"),
        importlib.metadata.version("matplotlib"),
    )
    digest = hashlib.sha256(repr(versions).encode())
    modules = (file for file in resources.files(__name__).iterdir() if file.name.endswith(".py"))
    for module in sorted(modules, key=lambda file: file.name):
        digest.update(module.read_bytes())
    return digest.hexdigest()
