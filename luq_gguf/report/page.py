"""A finished conversion's records -> report.html: one file with its style, its script and its pictures in it.

Takes what `folder` read and gives HTML text. Texts from records are escaped by the template engine; a content security
policy lets nothing but this page's own script run, and nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from luq_gguf import TOOL
from luq_gguf.judging import KINDS
from luq_gguf.report import views
from luq_gguf.report.numbers import FORMS, Numbers, computed, key
from luq_gguf.report.redo import command_line

if TYPE_CHECKING:
    from luq_gguf.report.folder import Finished

MOST_BYTES = 2_000_000
TEMPLATE, STYLE, SCRIPT = "report.html.j2", "report.css", "report.js"
MOST_TEXT = 400


def make_page(found: Finished) -> str:
    """The page; without the calibration images where it would be too large with them."""
    page = _render(found, pictures=True)
    return page if len(page.encode()) <= MOST_BYTES else _render(found, pictures=False)


def _render(found: Finished, *, pictures: bool) -> str:
    environment = _environment()
    script = _source(environment, SCRIPT)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(TEMPLATE).render(
        style=_source(environment, STYLE), script=script, script_digest=digest, pictures=pictures, **_context(found)
    )


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("luq_gguf.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters.update(FORMS)
    made.filters["clip"] = clip
    return made


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def clip(text: object, most: int = MOST_TEXT) -> str:
    """A text of a record in one line of bounded length."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"{line[:most]} ..."


def _context(found: Finished) -> Mapping[str, Any]:
    plan = found.plan
    return {
        "tool": TOOL,
        "found": found,
        "manifest": found.manifest,
        "plan": plan,
        "scores": found.scores,
        "quality": found.quality,
        "showcase": found.showcase,
        "show": Numbers(found.records).show,
        "computed": computed,
        "key": key,
        "files": views.file_rows(found),
        "sizes": views.size_bars(found),
        "types": views.type_shares(found),
        "layers": views.layers_view(found),
        "curves": [(each.name, each.style) for each in views.entropies(found)],
        "groups": views.quality_rows(found, KINDS),
        "memory": views.memory_rows(found),
        "speed": views.speed_rows(found),
        "benches": views.bench_rows(found),
        "frontier": views.frontier_view(found),
        "outside": views.outside_tiles(found),
        "stages": views.stage_bars(found),
        "minds": views.minds(found),
        "command": command_line(found.manifest),
        "usage": views.usage(found),
    }
