"""Gathers the facts that `doctor` judges: versions, what the libraries do when used, limits, disks, the profile.

Libraries are used in processes of their own, so that one that is broken or crashes is a fact like others.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from packaging.requirements import Requirement
from packaging.version import InvalidVersion

from luq_gguf import __version__
from luq_gguf.artifacts import cache_folder, existing_folder, read_record
from luq_gguf.children import child_environment
from luq_gguf.doctor import Activity, Facts, KeptProfile, Library, Limits, LlamaTrial, Place, Trial
from luq_gguf.errors import ArtifactError
from luq_gguf.machine import describe_machine
from luq_gguf.memory_limits import available_memory, group_limit, process_limit
from luq_gguf.processor_limits import measure_load, processor_quota
from luq_gguf.processors import cpu_name
from luq_gguf.progress import Progress, silent

LLAMA = "llama-cpp-python"
TRIED = ("torch", "transformers", "scikit-learn", LLAMA)
PATIENCE = 600.0
"""Seconds that a library may take to start; a cold disk takes long over torch."""


def gather_facts(progress: Progress = silent) -> Facts:
    """Everything about this machine and this installation; takes some seconds."""
    load = measure_load()  # before anything of ours computes
    found = try_libraries(progress)
    llama = LlamaTrial(**found.pop(LLAMA))
    return Facts(
        luq_gguf=__version__,
        python=platform.python_version(),
        libraries=tuple(required_libraries()),
        trials={name: Trial(**answer) for name, answer in found.items()},
        llama=llama,
        machine=describe_machine(),
        limits=read_limits(),
        activity=Activity(busy=load.busy, stolen=load.stolen, battery=_on_battery()),
        places=tuple(_places()),
        profile=find_profile(llama.version),
    )


def required_libraries() -> Iterator[Library]:
    """What luq_gguf's own metadata asks for, held against what is installed; nothing where it is not installed."""
    try:
        wanted = importlib.metadata.requires("luq-gguf") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for requirement in map(Requirement, wanted):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _library(requirement)


def _library(requirement: Requirement) -> Library:
    try:
        version: str | None = importlib.metadata.version(requirement.name)
        fits = version is not None and requirement.specifier.contains(version, prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        version, fits = None, False
    except InvalidVersion:
        fits = False
    return Library(name=requirement.name, wanted=str(requirement.specifier), version=version, fits=fits)


def try_libraries(progress: Progress = silent) -> dict[str, dict[str, Any]]:
    """What each library said in a process of its own; they run side by side."""
    environment = child_environment()
    children = {
        name: subprocess.Popen(
            [sys.executable, "-P", "-m", "luq_gguf.doctor_worker", name],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
        )
        for name in TRIED
    }  # fmt: skip
    found = {}
    for done, (name, child) in enumerate(children.items()):
        progress("try libraries", done, len(children))
        found[name] = _answer(name, child)
    progress("try libraries", len(children), len(children))
    return found


def _answer(name: str, child: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The last line that a child said, with how it ended where that was not by itself.

    llama.cpp says its version before the native module is used: what ends the process then is the module's problem.
    """
    try:
        output, _ = child.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return {"problem": f"no answer in {PATIENCE:.0f} s"}
    found = _last_record(output.decode(errors="replace"))
    if child.returncode or not found:
        native = name == LLAMA and "version" in found
        found["native_problem" if native else "problem"] = f"it ended the process ({_name_of(child.returncode)})"
    return found


def _last_record(output: str) -> dict[str, Any]:
    """The last JSON object that stands on a line of its own; libraries may print, too."""
    for line in reversed(output.splitlines()):
        with contextlib.suppress(json.JSONDecodeError):
            found = json.loads(line)
            if isinstance(found, dict):
                return found
    return {}


def _name_of(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def read_limits() -> Limits:
    """What the system grants."""
    quota, swap = processor_quota(), psutil.swap_memory()
    return Limits(
        memory=available_memory(),
        group_memory=group_limit(),
        addresses=process_limit(),
        swap_total=swap.total,
        swap_used=swap.used,
        files=_file_limit(),
        processors=quota.processors,
        throttled=quota.throttled,
        threads=os.environ.get("OMP_NUM_THREADS"),
    )


def _file_limit() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def _on_battery() -> bool:
    with contextlib.suppress(AttributeError, OSError, ValueError):  # no batteries, or none that is told of
        battery = psutil.sensors_battery()
        return battery is not None and battery.power_plugged is False
    return False


def _places() -> Iterator[Place]:
    """The folders where files go unless one is told otherwise."""
    yield _place("this folder", Path())
    yield _place("hub's models", _hub_folder())
    try:
        yield _place("temporary files", Path(tempfile.gettempdir()))
    except OSError:
        yield Place(name="temporary files", folder=os.environ.get("TMPDIR", "/tmp"), free=None, writable=False)  # noqa: S108
    yield _place("profiles", cache_folder())


def _place(name: str, folder: Path) -> Place:
    there = existing_folder(folder)
    try:
        free: int | None = shutil.disk_usage(there).free
    except OSError:
        free = None
    return Place(name=name, folder=str(folder.absolute()), free=free, writable=os.access(there, os.W_OK | os.X_OK))


def _hub_folder() -> Path:
    """Where models of the hub are downloaded to, by the variables that huggingface_hub goes by."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def find_profile(version: str | None) -> KeptProfile:
    """The kept profile of this CPU with a version of llama-cpp-python."""
    from luq_gguf.profile import profile_path
    from luq_gguf.speed import Profile

    path = profile_path(cpu_name(), version or "")
    others = [each for each in path.parent.glob("profile-*.json") if each != path]
    if version is None or not path.is_file():
        return KeptProfile(path=str(path), found=False, others=len(others))
    try:
        profile = read_record(path, Profile)
    except ArtifactError as error:
        return KeptProfile(path=str(path), found=True, problem=error.message)
    return KeptProfile(
        path=str(path), found=True, busy=profile.busy, threads=tuple(profile.threads), others=len(others)
    )
