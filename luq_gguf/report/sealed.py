"""Documents that people edit, written only over what this tool itself wrote.

The last line holds the hash of all that stands above it: whoever changes a letter owns the file from then on.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from luq_gguf.artifacts import write_text
from luq_gguf.small_files import MIB, read_small

HTML, HASH = "<!-- {} -->", "# {}"
"""How a comment is written in Markdown, and in a Modelfile."""
MOST_BYTES = 4 * MIB


def seal(text: str, comment: str) -> str:
    """The text with its hash as its last line."""
    body = text if text.endswith("\n") else f"{text}\n"
    digest = hashlib.sha256(body.encode()).hexdigest()
    return f"{body}{comment.format(f'written by luq-gguf, unchanged while its hash is {digest}')}\n"


def is_sealed(path: Path, comment: str) -> bool:
    """Whether a file is as this tool wrote it."""
    try:
        text = read_small(path, MOST_BYTES).decode()
    except (OSError, UnicodeDecodeError):
        return False
    body, end, _ = text.removesuffix("\n").rpartition("\n")
    return text == seal(body + end, comment)


def write_sealed(path: Path, text: str | None, comment: str, notes: list[str]) -> Path | None:
    """Write a document under its name unless someone else's stands there, which a note then says; None removes it."""
    if (path.exists() or path.is_symlink()) and not is_sealed(path, comment):
        notes.append(f"{path} was not written by this tool, or was edited since: it is left as it is")
        return None
    if text is None:
        path.unlink(missing_ok=True)
        return None
    write_text(path, seal(text, comment))
    return path
