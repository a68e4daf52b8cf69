"""What an analysis keeps on the disk while it runs, so that a killed one goes on at the picture or layer it was at.

The states of all samples lie there in two mapped files, before a layer and after it: they need no memory of their own,
and a layer that was killed finds what entered it. The files belong to one analysis: whoever names the folder makes the
name of everything that they depend on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter

from luq_gguf.artifacts import EntropyRow, atomic_path, fill_space, require_space
from luq_gguf.errors import ArtifactError

if TYPE_CHECKING:
    import torch

LAYERS = "layers.safetensors"
STATES = ("states-0.bin", "states-1.bin")
"""After an even number of layers the states are in the first."""
ALIGNED = 64
Shape = tuple[int, int, int]
_SHAPES = TypeAdapter(list[Shape])
_ROWS = TypeAdapter(dict[str, list[EntropyRow]])
_CHANGES = TypeAdapter(dict[str, list[float]])
_COUNTS = TypeAdapter(dict[str, dict[str, int]])


@dataclass(frozen=True)
class LayerState:
    """After `done` layers: the shapes of every batch' states, sums, entropies and changes so far.

    `squares` maps "<input>|<modality>" to float64 (channels,).
    """

    done: int
    shapes: Sequence[Shape]
    squares: Mapping[str, torch.Tensor]
    counts: dict[str, dict[str, int]]
    rows: dict[str, list[EntropyRow]]
    changes: dict[str, list[float]]


class AnalysisState:
    """The kept state in `folder`; None keeps nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._mapped: list[np.memmap[Any, np.dtype[np.uint8]]] = []

    def states(
        self, shapes: Sequence[Shape], dtype: torch.dtype, state: LayerState | None
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """For every batch its states (batch, tokens, hidden), and as much room for those after the next layer.

        They are those of `state`, or yet to be filled in; in memory where nothing is kept. Raises ArtifactError where
        the state is not of batches of these shapes, DiskSpaceError where they do not fit.
        """
        import torch

        if self.folder is None:
            return [(torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype)) for shape in shapes]
        sizes = [-(-prod(shape) * dtype.itemsize // ALIGNED) * ALIGNED for shape in shapes]
        if state is None:
            self._make_room(sum(sizes))
        elif list(state.shapes) != list(shapes):
            raise ArtifactError(
                f"{self.folder} holds the state of another analysis", path=self.folder, hint="delete that folder"
            )
        self._mapped = [self._map(self.folder / name, sum(sizes)) for name in STATES]
        done = state.done if state else 0
        sets = [
            [
                rows[: prod(shape) * dtype.itemsize].view(dtype).view(shape)
                for rows, shape in zip(torch.split(torch.from_numpy(mapped), sizes), shapes, strict=True)
            ]
            for mapped in self._mapped
        ]
        return list(zip(sets[done % 2], sets[(done + 1) % 2], strict=True))

    def _make_room(self, nbytes: int) -> None:
        assert self.folder is not None
        require_space(self.folder, 2 * nbytes, "keeping the analysis' progress")
        for name in STATES:
            with atomic_path(self.folder / name) as partial:
                fill_space(partial, nbytes)

    @staticmethod
    def _map(path: Path, nbytes: int) -> np.memmap[Any, np.dtype[np.uint8]]:
        try:
            if path.stat().st_size != nbytes:
                raise ValueError(f"it has another size than {nbytes:,} bytes")
            return np.memmap(path, np.uint8, mode="r+")
        except Exception as error:
            raise _broken(path, error) from error

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
            shapes = _SHAPES.validate_json(metadata["shapes"])
            squares = {key.removeprefix("squares|"): tensor for key, tensor in tensors.items()}
            counts, rows = _COUNTS.validate_json(metadata["counts"]), _ROWS.validate_json(metadata["rows"])
            changes = _CHANGES.validate_json(metadata["changes"])
            return LayerState(int(metadata["done"]), shapes, squares, counts, rows, changes)
        except Exception as error:  # safetensors, pydantic and torch each have kinds of their own
            raise _broken(path, error) from error

    def keep_layers(self, state: LayerState, *, features_done: bool = True) -> None:
        """Keep the state after a layer in the place of the one before; with `features_done` the features are in it."""
        from safetensors.torch import save_file

        if self.folder is None:
            return
        self._mapped[state.done % 2].flush()
        tensors = {f"squares|{key}": row for key, row in state.squares.items()}
        metadata = {
            "done": str(state.done),
            "shapes": json.dumps(state.shapes),
            "counts": json.dumps(state.counts),
            "rows": _ROWS.dump_json(state.rows).decode(),
            "changes": json.dumps(state.changes),
        }
        with atomic_path(self.folder / LAYERS) as partial:
            save_file(tensors, partial, metadata)
        if features_done:
            for path in self.folder.glob("features-*.safetensors"):
                path.unlink()


def shape_of(states: torch.Tensor) -> Shape:
    """The shape of a batch' states."""
    count, tokens, hidden = states.shape
    return count, tokens, hidden


def _broken(path: Path, error: Exception) -> ArtifactError:
    what = " ".join(str(error).split())
    return ArtifactError(f"cannot go on from {path}: {what}", path=path, hint="delete it to begin the analysis again")
