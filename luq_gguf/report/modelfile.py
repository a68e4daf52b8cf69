"""A Modelfile for Ollama: the two files, and the chat template where its form is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luq_gguf import TOOL

if TYPE_CHECKING:
    from luq_gguf.report.chat_formats import ChatFormat
    from luq_gguf.report.folder import Finished


def make_modelfile(found: Finished, form: ChatFormat | None) -> str:
    """The Modelfile's text; names are the tool's own, in harmless characters."""
    lines = [f"# {TOOL}: ollama create {found.manifest.name.lower()} -f Modelfile", f"FROM ./{found.model}"]
    if found.mmproj is not None:
        lines.append(f"FROM ./{found.mmproj}")
    if form is None:
        lines.append("# The form of this model's chat template is not known to the tool: add a TEMPLATE by hand.")
        return "\n".join(lines) + "\n"
    lines.append(f'TEMPLATE """{form.go_template()}"""')
    if form.system:
        lines.append(f'SYSTEM """{form.system}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in form.stops]
    return "\n".join(lines) + "\n"
