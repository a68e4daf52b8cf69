"""The report of a finished conversion from its folder: report.html, the model card with its plots, a Modelfile.

Takes a folder whose manifest stands, leaves the documents in it and their hashes in the manifest. What is shown comes
from the records; the checkpoint is not needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from luq_gguf.artifacts import lock_folder, remove_stale, write_text
from luq_gguf.errors import LuqError
from luq_gguf.job import CARD, DOCUMENTS, MODELFILE, PLOTS, REPORT, WORK
from luq_gguf.manifest import Manifest, record_files, write_manifest

__all__ = ["Report", "try_report", "write_report"]


@dataclass(frozen=True)
class Report:
    """What was written, and what to mind."""

    page: Path
    card: Path | None
    modelfile: Path | None
    plots: tuple[Path, ...]
    notes: tuple[str, ...]

    @property
    def files(self) -> list[Path]:
        """Every document, the page first."""
        return [self.page, *(path for path in (self.card, self.modelfile) if path is not None), *self.plots]


def write_report(folder: Path) -> Report:
    """Make all documents of a finished conversion anew, and note them in its manifest.

    A model card or Modelfile that someone else wrote, or edited, is left as it is. Raises ArtifactError where the
    folder holds no finished conversion or its records are not as they were left.
    """
    from luq_gguf.report.card import make_card
    from luq_gguf.report.chat_formats import find_format
    from luq_gguf.report.folder import read_finished
    from luq_gguf.report.modelfile import make_modelfile
    from luq_gguf.report.page import make_page
    from luq_gguf.report.plots import draw_plots
    from luq_gguf.report.sealed import HASH, HTML, write_sealed

    found = read_finished(folder)
    with lock_folder(folder / WORK):
        remove_stale(folder)
        form = find_format(found.text.metadata)
        notes: list[str] = []
        plots = draw_plots(found, folder)
        for old in {folder / name for name in PLOTS} - set(plots):
            old.unlink(missing_ok=True)
        card = write_sealed(folder / CARD, make_card(found, form, plots), HTML, notes)
        modelfile = write_sealed(folder / MODELFILE, make_modelfile(found, form), HASH, notes)
        write_text(folder / REPORT, make_page(found))  # the last: where it stands, all of them do
        made = Report(folder / REPORT, card, modelfile, plots, tuple(notes))
        write_manifest(folder, _with_documents(found.manifest, made.files))
    return made


def _with_documents(manifest: Manifest, documents: list[Path]) -> Manifest:
    kept = {name: record for name, record in manifest.files.items() if name not in DOCUMENTS}
    return manifest.model_copy(update={"files": kept | record_files(documents)})


def try_report(folder: Path) -> tuple[Path | None, tuple[str, ...]]:
    """The page of a conversion that was just finished, with what to mind; a failure is one line, and no page."""
    try:
        made = write_report(folder)
    except Exception as error:  # whatever it is, hours of work stand beside it
        why = str(error) if isinstance(error, LuqError) else f"{type(error).__name__}: {' '.join(str(error).split())}"
        return None, (f"the files are finished, but there is no report: {why[:400]}; try `luq-gguf report {folder}`",)
    return made.page, made.notes
