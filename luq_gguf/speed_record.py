"""`speed.json`: how fast a conversion's file was predicted to be on a CPU, and what it was measured to reach."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field

from luq_gguf.artifacts import Record
from luq_gguf.speed import Speed
from luq_gguf.speed_budget import Forecast

SPEED = "speed.json"


class Rate(Record):
    """Tokens a second: generating one by one, and reading a prompt."""

    generate: float = Field(gt=0)
    prompt: float = Field(gt=0)

    @classmethod
    def of(cls, speed: Speed) -> Self:
        """The rates of a predicted speed."""
        return cls(generate=speed.generate, prompt=speed.prompt)


class SpeedRecord(Record):
    """Rates of the file (`plan`), of the high type alone, and of the 16-bit file where the profile has its types.

    `long` is the file's after `long_context` tokens; `doubt` says what speaks against the prediction; `measured` are
    the file's generated tokens a second where the conversion measured them.
    """

    format: Literal["luq-gguf speed 1"] = "luq-gguf speed 1"
    cpu: str
    threads: int
    plan: Rate
    high: Rate
    full: Rate | None
    long: Rate
    long_context: int
    doubt: str | None = None
    measured: float | None = None

    @classmethod
    def of(cls, forecast: Forecast, measured: float | None = None) -> Self:
        """The record of a prediction and of what was measured after it."""
        return cls(
            cpu=forecast.cpu, threads=forecast.threads, plan=Rate.of(forecast.plan), high=Rate.of(forecast.high),
            full=Rate.of(forecast.full) if forecast.full else None, long=Rate.of(forecast.long),
            long_context=forecast.long_context, doubt=forecast.doubt, measured=measured,
        )  # fmt: skip
