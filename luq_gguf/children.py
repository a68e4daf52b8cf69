"""How Python children of this program are started: with the modules of their owner, whatever folder it runs in."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def child_environment() -> dict[str, str]:
    """The environment of a child that imports this package and its dependencies from where its owner did."""
    package_root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join([package_root, *(folder for folder in sys.path if folder)])
    return {**os.environ, "GGML_NO_BACKTRACE": "1", "PYTHONPATH": path}
