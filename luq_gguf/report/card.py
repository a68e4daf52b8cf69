"""A finished conversion's records -> the model card README.md, in the Hugging Face hub's form.

Takes what `folder` read and the plots that were drawn. What comes from the checkpoint is hostile until it is escaped:
the head is dumped by YAML's own writer, and every expression of the template is escaped for Markdown by itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined

from luq_gguf import TOOL
from luq_gguf.job import PLOTS
from luq_gguf.judging import KINDS
from luq_gguf.report import views
from luq_gguf.report.numbers import FORMS
from luq_gguf.report.redo import command_line

if TYPE_CHECKING:
    from luq_gguf.report.chat_formats import ChatFormat
    from luq_gguf.report.folder import Finished

TEMPLATE = "README.md.j2"
SPECIAL = re.compile(r"([\\`*_\[\]#+!|~$^:@])")
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z]{2,4})?")
MOST_TEXT, MOST_LANGUAGES = 300, 50


class Plain(str):
    """Markdown that this tool wrote, and that is not escaped again."""

    __slots__ = ()


def make_card(found: Finished, form: ChatFormat | None, plots: Sequence[Path]) -> str:
    """The card's text with its head."""
    environment = Environment(
        loader=PackageLoader("luq_gguf.report"), autoescape=False,  # noqa: S701 - Markdown: `finalize` escapes
        undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, finalize=_finalize,
    )  # fmt: skip
    environment.filters.update({name: _plainly(form) for name, form in FORMS.items() if name != "text"})
    environment.filters["code"] = code
    body = environment.get_template(TEMPLATE).render(_context(found, form, plots))
    return f"---\n{head(found)}---\n{body}"


def _plainly(form: Any) -> Any:
    return lambda value: Plain(form(value))


def _finalize(value: Any) -> str:
    return value if isinstance(value, Plain) else escape(str(value))


def escape(text: str) -> str:
    """A text in one line that Markdown and HTML in it leave as it is."""
    line = re.sub(r"\s+", " ", "".join(mark if mark.isprintable() else " " for mark in text))
    line = line if len(line) <= MOST_TEXT else f"{line[:MOST_TEXT]} ..."
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return SPECIAL.sub(r"\\\1", line)


def code(text: str) -> Plain:
    """A text as a line of a code block, which it cannot end."""
    line = "".join(mark if mark.isprintable() else " " for mark in str(text))
    return Plain(line.replace("```", "'''"))


def head(found: Finished) -> str:
    """The YAML head: where the model comes from, its licence, what it is."""
    import yaml

    fields: dict[str, Any] = {}
    if found.manifest.source:
        fields |= {"base_model": found.manifest.source.partition("@")[0], "base_model_relation": "quantized"}
    fields |= _license(found)
    if languages := _languages(found):
        fields["language"] = languages
    fields["library_name"] = "gguf"
    fields["pipeline_tag"] = "image-text-to-text" if found.mmproj else "text-generation"
    fields["tags"] = ["gguf", "llama.cpp", "luq", "mixed-precision", *(["vision"] if found.mmproj else [])]
    fields["quantized_by"] = TOOL
    written: str = yaml.safe_dump(fields, allow_unicode=True, sort_keys=False, width=1000)
    return written


def _license(found: Finished) -> dict[str, str]:
    """What the checkpoint's own card says, as far as the hub takes it."""
    stated = {name: found.text.metadata.get(f"general.{name}") for name in ("license", "license.name", "license.link")}
    name = stated["license"]
    if not isinstance(name, str):
        return {}
    if not LICENSE.fullmatch(name):
        return {"license": "other", "license_name": " ".join(name.split())[:MOST_TEXT]}
    more: dict[str, str] = {}
    if isinstance(stated["license.name"], str):
        more["license_name"] = " ".join(stated["license.name"].split())[:MOST_TEXT]
    link = stated["license.link"]
    if isinstance(link, str) and urlsplit(link).scheme in ("http", "https") and len(link) <= MOST_TEXT:
        more["license_link"] = link
    return {"license": name, **more}


def _languages(found: Finished) -> list[str]:
    stated = found.text.metadata.get("general.languages")
    if not isinstance(stated, list):
        return []
    return [name for name in stated if isinstance(name, str) and LANGUAGE.fullmatch(name)][:MOST_LANGUAGES]


def _context(found: Finished, form: ChatFormat | None, plots: Sequence[Path]) -> dict[str, Any]:
    name = found.text.metadata.get("general.name")
    return {
        "found": found,
        "plan": found.plan,
        "manifest": found.manifest,
        "quality": found.quality,
        "title": name if isinstance(name, str) and name.strip() else found.manifest.name,
        "kinds": KINDS,
        "files": views.file_rows(found),
        "types": views.type_shares(found),
        "memory": views.memory_rows(found),
        "speed": views.speed_rows(found),
        "minds": views.minds(found),
        "form": form,
        "picture_option": Plain(views.picture_option(found)),
        "plots": {name: any(plot.name == name for plot in plots) for name in PLOTS},
        "command": command_line(found.manifest),
        "licensed": bool(_license(found)),
        "tool": TOOL,
    }
