"""llama.cpp's own tools, for tests that hold our files against them.

Their sources come from the source archive of llama-cpp-python at the pinned version; they are linked with the
libraries of the installed llama-cpp-python, so that no library is compiled. Both stay in build/ between runs.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "llama-cpp-python"
IN_ARCHIVE = ("vendor", "llama.cpp")
NEEDED = ("common", "conversion", "convert_hf_to_gguf.py", "ggml/include", "gguf-py", "include", "tools", "vendor")
INCLUDES = ("common", "ggml/include", "include", "tools/mtmd", "vendor")
TOOLS = {
    "llama-quantize": ("tools/quantize/main.cpp", "tools/quantize/quantize.cpp"),
    "llama-imatrix": ("tools/imatrix/imatrix.cpp",),
    "llama-mtmd-cli": ("tools/mtmd/mtmd-cli.cpp",),
}
BENCH = {"llama-bench": ("tools/llama-bench/main.cpp", "tools/llama-bench/llama-bench.cpp")}
"""Only for benchmarks/llama_bench.py."""
LIBRARIES = ("llama-common", "mtmd", "llama", "ggml", "ggml-cpu", "ggml-base")
MARKER = "<<answer>>"
ANSWER = re.compile(rf".*{MARKER}\n+(.+?)\n+", re.DOTALL)


@dataclass(frozen=True)
class StockTools:
    """Compiled tools, the llama.cpp tree that they come from, and the libraries that they run with."""

    source: Path
    folder: Path
    libraries: Path

    def run(self, tool: str, *arguments: str | int | Path, cwd: Path, **environment: str) -> str:
        """What a tool prints; it must succeed. In a session of its own it finds no terminal to write to."""
        command = [str(self.folder / tool), *map(str, arguments)]
        variables = os.environ | {"LD_LIBRARY_PATH": str(self.libraries)} | environment
        done = subprocess.run(
            command, cwd=cwd, env=variables, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=300,
            start_new_session=True,
        )  # fmt: skip
        output = (done.stdout + done.stderr).decode(errors="replace")
        assert done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}\n{output[-4000:]}"
        return done.stdout.decode()

    def ask(self, model: Path, mmproj: Path, image: Path, question: str) -> str:
        """A greedy answer of llama-mtmd-cli about an image.

        llama.cpp's logger loses at exit what it has not printed yet: an answer without its line end is asked again.
        """
        files = ("-m", model, "--mmproj", mmproj, "--image", image)
        options = ("-p", question, "--temp", 0, "-t", 1, "-n", 64)
        for _ in range(5):
            printed = self.run("llama-mtmd-cli", *files, *options, cwd=ROOT, MTMD_TEST_RESPONSE_MARKER=MARKER)
            if found := ANSWER.fullmatch(printed):
                return found[1].strip()
        raise AssertionError(f"llama-mtmd-cli gave no whole answer, only {printed!r}")


def pinned_version() -> str:
    """The version in constraints.txt, which has to be the installed one."""
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    installed = importlib.metadata.version(PACKAGE)
    assert installed == pins[PACKAGE], f"{PACKAGE} {installed} is installed, constraints.txt says {pins[PACKAGE]}"
    return installed


def prepare_stock_tools(tools_of: Mapping[str, tuple[str, ...]] = TOOLS) -> StockTools:
    """Get the archive and compile the tools, where an earlier run has not."""
    import llama_cpp

    version = pinned_version()
    home = ROOT / "build" / f"llama.cpp-{version}"
    libraries = Path(llama_cpp.__file__).parent.parent / "lib"
    home.mkdir(parents=True, exist_ok=True)
    source, tools = home / "source", home / "tools"
    if not source.is_dir():
        fetch_source(version, source)
    tools.mkdir(exist_ok=True)
    newest = max(path.stat().st_mtime for path in libraries.glob("*.so"))
    for name, files in tools_of.items():
        if not (tools / name).is_file() or (tools / name).stat().st_mtime < newest:
            compile_tool(name, files, source, tools, libraries)
    return StockTools(source, tools, libraries)


def fetch_source(version: str, target: Path) -> None:
    """Download the source archive with pip and unpack the part of llama.cpp that is needed here."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as work:
        options = ("--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--dest", work)
        run_quietly(
            [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", *options, f"{PACKAGE}=={version}"],
            "the slow tests need the source archive of llama-cpp-python",
        )
        (archive,) = Path(work).glob("*.tar.gz")
        unpacked = Path(work) / "source"
        unpack(archive, unpacked)
        unpacked.rename(target)


def unpack(archive: Path, target: Path) -> None:
    """Write the needed regular files below `target`; links, and names that lead elsewhere, are left out."""
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            inner = PurePosixPath(*path.parts[3:])
            wanted = path.parts[1:3] == IN_ARCHIVE and any(inner.is_relative_to(name) for name in NEEDED)
            content = tar.extractfile(member) if wanted and member.isfile() else None
            if content is None or ".." in path.parts:
                continue
            (target / inner).parent.mkdir(parents=True, exist_ok=True)
            (target / inner).write_bytes(content.read())


def compile_tool(name: str, files: Sequence[str], source: Path, folder: Path, libraries: Path) -> None:
    """Compile and link one tool; it finds its libraries by LD_LIBRARY_PATH."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".compile-") as work:
        made = Path(work) / name
        run_quietly(
            [
                "c++", "-std=c++17", "-O1", "-w",
                *(f"-I{source / include}" for include in INCLUDES),
                *(str(source / file) for file in files),
                f"-L{libraries}", *(f"-l{library}" for library in LIBRARIES), "-pthread", "-o", str(made),
            ],
            f"cannot compile {name}",
        )  # fmt: skip
        made.replace(folder / name)


def run_quietly(command: list[str], trouble: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{trouble}:\n{' '.join(command)}\n{done.stdout[-4000:]}")
