"""How a stage tells how far it is, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as `progress(what, done, total)`; `what` names the stage and stays the same within it.

A stage that begins before another is finished lies within that one, as the batches of a layer do within the layers.
"""


def silent(what: str, done: int, total: int) -> None:
    """A listener that ignores everything."""
