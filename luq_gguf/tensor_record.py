"""Arrays with a note as one safetensors file, whose bytes follow from its content.

The note is JSON under a single metadata key: safetensors writes several keys in any order, and two
conversions are to give the same files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luq_gguf.artifacts import atomic_path
from luq_gguf.small_files import parse_json, require_regular

NOTE = "luq_gguf"
Arrays = dict[str, NDArray[Any]]


def write_arrays(path: Path, kind: str, arrays: Mapping[str, NDArray[Any]], note: Mapping[str, Any]) -> None:
    """Write arrays under their final name; `kind` names format and version, `note` is plain JSON."""
    from safetensors.numpy import save_file

    text = json.dumps({"format": kind, **note}, sort_keys=True)
    with atomic_path(path) as partial:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, partial, {NOTE: text})


def read_arrays(path: Path, kind: str) -> tuple[Arrays, dict[str, Any]]:
    """Arrays and note; raises ValueError with what is wrong where the file is missing, cut, or of another kind."""
    from safetensors import SafetensorError, safe_open

    try:
        require_regular(path)
        with safe_open(path, framework="numpy") as handle:
            note = parse_json((handle.metadata() or {}).get(NOTE, "{}").encode())
            found = note.get("format") if isinstance(note, dict) else None
            if found != kind:
                raise ValueError(f"its format is {found!r}, not {kind!r}")
            return {name: handle.get_tensor(name) for name in handle.keys()}, note  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        raise ValueError(" ".join(str(error).split())) from error
