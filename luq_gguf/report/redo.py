"""The command that makes a conversion again, from the settings in its manifest.

Options that have their default are left out; files are named without their folders, as a page may be published.
"""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import PurePath

from luq_gguf.job import Settings
from luq_gguf.manifest import Manifest

FLAGS = {"bundle": "--bundle", "skip_bad": "--skip-bad", "strict": "--strict", "check_all": "--check-all",
         "sequential": "--sequential"}  # fmt: skip
DEFAULTS = {field.name: field.default for field in fields(Settings)}
OTHERWISE = ("evaluate", "imatrix", "calib")
"""Settings whose option is not named like them, or holds a path."""


def command_line(manifest: Manifest) -> str:
    """`luq-gguf convert ...` for a shell."""
    model = manifest.source.partition("@")[0] if manifest.source else manifest.name
    words = ["luq-gguf", "convert", model, "--out", manifest.name.lower()]
    for name, value in manifest.settings.items():
        if name not in DEFAULTS or name in OTHERWISE or value in (None, DEFAULTS[name]):
            continue
        if name in FLAGS:
            words.append(FLAGS[name])
        else:
            words += [f"--{name.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value)]
    if calib := manifest.settings.get("calib"):
        words += ["--calib", PurePath(str(calib)).name]
    for brought in str(manifest.settings.get("imatrix") or "").split():
        words += ["--imatrix", brought.partition(":")[2]]
    if manifest.settings.get("evaluate") is False:
        words.append("--no-eval")
    return shlex.join(words)
