"""The shape of the program's help: its commands by what people do, and a guide where `convert` is given nothing."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

MAKE, JUDGE, STAGES, MACHINE = "Make a file", "Judge it", "One stage at a time", "This machine"
PANELS = (MAKE, JUDGE, STAGES, MACHINE)
"""The groups of commands, in the order in which they are shown."""
FIRST = ("convert", "demo", "ask", "eval", "bench", "doctor")
"""What stands at the head of its group."""
GUIDE = """\
luq-gguf convert makes a small GGUF of a vision-language model. It wants a model and a folder for the results:

  luq-gguf convert Qwen/Qwen2.5-VL-7B-Instruct --out qwen --max-size 3.4GiB
      a file of at most 3.4 GiB; the model is downloaded from the hub, or is a folder of yours
  luq-gguf convert my-model --out small --low-layers 12
      so many layers get ultra-low bits; without any budget three sevenths of them
  luq-gguf convert my-model --out small --max-size 3.4GiB --dry-run
      what time, memory and disk it would take on this machine; nothing is done

Try it without a download:                luq-gguf demo
See whether this machine is ready:        luq-gguf doctor
Every option, by what it is good for:     luq-gguf convert --help
What the numbers mean:                    README.md, "Choices" and "How good is the file?"
"""


class Commands(TyperGroup):
    """The program's commands, ordered by group."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names by group; within one the most wanted first, then as they were registered."""
        return sorted(super().list_commands(ctx), key=self._rank)

    def _rank(self, name: str) -> tuple[int, int]:
        panel = getattr(self.commands[name], "rich_help_panel", None)
        return (
            PANELS.index(panel) if panel in PANELS else len(PANELS),
            FIRST.index(name) if name in FIRST else len(FIRST),
        )


class GuidedCommand(TyperCommand):
    """A command that explains itself on stderr where it is given nothing at all; exit code 2."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what is given."""
        if not args and not ctx.resilient_parsing:
            typer.echo(GUIDE, err=True, nl=False)
            raise typer.Exit(2)
        return super().parse_args(ctx, args)
