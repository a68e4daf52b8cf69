"""The README's table of frontends names the versions that the tests of frontends use."""

from __future__ import annotations

import json
import re
from pathlib import Path

import llama_cpp

from tests.frontends import readme_frontends
from tests.node_frontend import RECIPE
from tests.stock import pinned, pinned_version

UNCHECKED = {"LM Studio", "Jan", "KoboldCpp", "Ollama"}


def llama_cpp_version() -> str:
    """Of the installed libraries, which the tests' llama.cpp tools run with."""
    config = Path(llama_cpp.__file__).parent.parent / "lib" / "cmake" / "llama" / "llama-config.cmake"
    found = re.search(r"set\(LLAMA_VERSION\s+(\S+)\)", config.read_text())
    assert found
    return found[1]


def test_the_readme_names_the_versions_that_are_checked() -> None:
    """That of llama.cpp in node-llama-cpp is held by the slow test, which asks it."""
    named = readme_frontends()
    wrapped = named.pop("node-llama-cpp").partition(", with llama.cpp ")[0]
    packages = json.loads((RECIPE / "package-lock.json").read_text())["packages"]
    locked = {name: packages[f"node_modules/{name}"]["version"] for name in packages[""]["dependencies"]}
    assert set(locked.values()) == {wrapped}
    assert locked == packages[""]["dependencies"]
    assert named == {
        "llama-server": llama_cpp_version(),
        "llama-mtmd-cli": llama_cpp_version(),
        "llama_cpp.server": pinned_version(),
        **dict.fromkeys(UNCHECKED, ""),
    }


def test_what_the_server_needs_is_pinned() -> None:
    for package in ("fastapi", "pydantic-settings", "sse-starlette", "starlette-context", "uvicorn"):
        assert re.fullmatch(r"[\d.]+", pinned(package))
