"""A hook of mkdocs: pages of the site that lie elsewhere in the source, and links to them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "../benchmarks/BENCHMARKS.md": "benchmarks.md",
    "../luq_gguf/calibration_set/photos/PROVENANCE.md": "photos.md",
    "../CHANGELOG.md": "changes.md",
}
"""By the link that a page in docs/ has to it, which holds where the source is browsed too, the name in the site."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages; their links to pictures in docs/ hold, those to files that are no pages become plain text."""
    for link, name in PAGES.items():
        text = (ROOT / "docs" / link).resolve().read_text(encoding="utf-8").replace("](../docs/", "](")
        text = re.sub(r"\[([^\]]+)\]\((?![#h])[^)#]+\.(?:json|jpg)\)", r"\1", text)
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead links out of docs/ to the pages that were added."""
    for link, name in PAGES.items():
        markdown = markdown.replace(f"]({link}", f"]({name}")
    return markdown
