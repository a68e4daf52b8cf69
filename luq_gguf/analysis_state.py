"""What an analysis keeps on the disk while it runs, so that a killed one goes on at the picture or layer it was at.

Takes and gives torch tensors in the type they are computed in, so that what goes on is what would have
been. The files belong to one analysis: whoever names the folder makes the name of everything that they depend on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from luq_gguf.artifacts import EntropyRow, atomic_path, require_space
from luq_gguf.errors import ArtifactError

if TYPE_CHECKING:
    import torch

LAYERS = "layers.safetensors"
_ROWS = TypeAdapter(dict[str, list[EntropyRow]])
_CHANGES = TypeAdapter(dict[str, list[float]])
_COUNTS = TypeAdapter(dict[str, dict[str, int]])


@dataclass(frozen=True)
class LayerState:
    """After `done` layers: the states of every batch (batch, tokens, hidden), sums, entropies and changes so far.

    `squares` maps "<input>|<modality>" to float64 (channels,).
    """

    done: int
    states: Sequence[torch.Tensor]
    squares: Mapping[str, torch.Tensor]
    counts: dict[str, dict[str, int]]
    rows: dict[str, list[EntropyRow]]
    changes: dict[str, list[float]]


class AnalysisState:
    """The kept state in `folder`; None keeps nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def require_room(self, nbytes: int) -> None:
        """Raise DiskSpaceError unless states of so many bytes fit beside those of the layer before."""
        if self.folder is not None:
            require_space(self.folder, 2 * nbytes, "keeping the analysis' progress")

    def features(self, group: str) -> list[torch.Tensor] | None:
        """The features (tokens, hidden) of the pictures of a group, where they were kept."""
        from safetensors.torch import load_file

        path = self._features_path(group)
        if path is None or not path.exists():
            return None
        try:
            rows = load_file(path)
            return [rows[str(number)] for number in range(len(rows))]
        except Exception as error:
            raise _broken(path, error) from error

    def keep_features(self, group: str, features: Sequence[torch.Tensor]) -> None:
        """Keep the features of a group of pictures."""
        from safetensors.torch import save_file

        if path := self._features_path(group):
            with atomic_path(path) as partial:
                save_file({str(number): rows.clone() for number, rows in enumerate(features)}, partial)

    def _features_path(self, group: str) -> Path | None:
        return None if self.folder is None else self.folder / f"features-{group}.safetensors"

    def layers(self) -> LayerState | None:
        """The state after the last finished layer, or None where none was finished."""
        from safetensors import safe_open

        path = None if self.folder is None else self.folder / LAYERS
        if path is None or not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as handle:
                metadata = handle.metadata()
                tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 - not a mapping
            states = [tensors.pop(f"states|{number}") for number in range(int(metadata["batches"]))]
            squares = {key.removeprefix("squares|"): tensor for key, tensor in tensors.items()}
            counts, rows = _COUNTS.validate_json(metadata["counts"]), _ROWS.validate_json(metadata["rows"])
            changes = _CHANGES.validate_json(metadata["changes"])
            return LayerState(int(metadata["done"]), states, squares, counts, rows, changes)
        except Exception as error:  # safetensors, pydantic and torch each have kinds of their own
            raise _broken(path, error) from error

    def keep_layers(self, state: LayerState, *, features_done: bool = True) -> None:
        """Keep the state after a layer in the place of the one before; with `features_done` the features are in it."""
        from safetensors.torch import save_file

        if self.folder is None:
            return
        tensors = {f"states|{number}": batch.contiguous() for number, batch in enumerate(state.states)}
        tensors |= {f"squares|{key}": row for key, row in state.squares.items()}
        metadata = {
            "done": str(state.done),
            "batches": str(len(state.states)),
            "counts": json.dumps(state.counts),
            "rows": _ROWS.dump_json(state.rows).decode(),
            "changes": json.dumps(state.changes),
        }
        with atomic_path(self.folder / LAYERS) as partial:
            save_file(tensors, partial, metadata)
        if features_done:
            for path in self.folder.glob("features-*.safetensors"):
                path.unlink()


def _broken(path: Path, error: Exception) -> ArtifactError:
    what = " ".join(str(error).split())
    return ArtifactError(f"cannot go on from {path}: {what}", path=path, hint="delete it to begin the analysis again")
