"""Which stages of a run are under way, which lie within another, and how long each will go on.

Takes the calls of a `Progress` listener and the time, gives stages; knows nothing of terminals.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Stage:
    """A stage with what is done of it; `depth` is 0 for one that lies within no other. Times are in seconds.

    `base` and `since` say from where on its rate is counted, `last` when it went on last.
    """

    name: str
    depth: int
    done: int
    total: int
    base: int
    since: float
    last: float

    @classmethod
    def begin(cls, name: str, depth: int, done: int, total: int, now: float) -> Stage:
        """A stage that is heard of for the first time; what is done of it already was so before."""
        return cls(name, depth, done, total, done, now, now)

    @property
    def finished(self) -> bool:
        """Whether nothing is left of it."""
        return self.done >= self.total

    def advance(self, done: int, total: int, now: float) -> None:
        """Take what is done now.

        Steps that earlier runs had done pass in no time and tell nothing of the others: one that takes longer than all
        before it starts the count anew.
        """
        if done < self.done:
            self.base, self.since, self.last = done, now, now
        elif done > self.done:
            if self.done > self.base and now - self.last > self.last - self.since:
                self.base, self.since = self.done, self.last
            self.last = now
        self.done, self.total = done, total

    def left(self, now: float) -> float | None:
        """Seconds to its end at the rate so far; None before its first step is done."""
        steps, taken = self.done - self.base, self.last - self.since
        if steps <= 0 or taken <= 0:
            return None
        return max(0.0, (self.total - self.done) * taken / steps - (now - self.last))


class Stages:
    """The stages under way: one that begins before another is finished lies within that one."""

    def __init__(self) -> None:
        self.open: list[Stage] = []

    def update(self, name: str, done: int, total: int, now: float) -> tuple[Stage, list[Stage]]:
        """The stage that a call is of, and the stages that lay within it and ended with its step."""
        place = next((place for place, stage in enumerate(self.open) if stage.name == name), len(self.open))
        if place == len(self.open):
            self.open.append(Stage.begin(name, place, done, total, now))
        stage = self.open[place]
        ended = self.open[place + 1 :] if done != stage.done or done >= total else []
        stage.advance(done, total, now)
        if ended:
            del self.open[place + 1 :]
        if stage.finished:
            del self.open[place:]
        return stage, ended
