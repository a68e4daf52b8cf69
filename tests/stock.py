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
from multiprocessing.pool import ThreadPool
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
SERVER = {"llama-server": ("tools/server/*.cpp", "tools/ui/ui.h.in", "tools/ui/ui.cpp.in")}
"""Only for the frontends: more code than all others together."""
NO_PAGE = {"#cmakedefine LLAMA_UI_HAS_ASSETS 1": "", "@N_ASSETS@": "0", "@USE_GZIP@": "false", "@ASSET_ARRAYS@": ""}
"""How the templates (*.in) of the server's web page are filled where it has none."""
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

    @property
    def environment(self) -> dict[str, str]:
        """What the tools need to find their libraries."""
        return {"LD_LIBRARY_PATH": str(self.libraries)}

    def run(self, tool: str, *arguments: str | int | Path, cwd: Path, **environment: str) -> str:
        """What a tool prints; it must succeed. In a session of its own it finds no terminal to write to."""
        command = [str(self.folder / tool), *map(str, arguments)]
        variables = os.environ | self.environment | environment
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


def pinned(package: str) -> str:
    """A version in constraints.txt."""
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    return pins[package]


def pinned_version() -> str:
    """That of llama-cpp-python, which has to be the installed one."""
    installed, wanted = importlib.metadata.version(PACKAGE), pinned(PACKAGE)
    assert installed == wanted, f"{PACKAGE} {installed} is installed, constraints.txt says {wanted}"
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
        includes = (f"-I{path}" for path in (work, *(source / include for include in INCLUDES)))
        options = ("-std=c++17", "-O1", "-w", *includes, *built_with(libraries))

        def compile_file(number: int, path: Path) -> str:
            target = f"{work}/{number}.o"
            run_quietly(["c++", *options, "-c", str(path), "-o", target], f"cannot compile {name}")
            return target

        with ThreadPool(os.cpu_count()) as pool:
            objects = pool.starmap(compile_file, enumerate(code_of(files, source, Path(work))), chunksize=1)
        linked = (f"-L{libraries}", *(f"-l{library}" for library in LIBRARIES))
        run_quietly(["c++", *objects, *linked, "-pthread", "-o", str(made)], f"cannot link {name}")
        made.replace(folder / name)


def built_with(libraries: Path) -> tuple[str, ...]:
    """What the layout of the classes depends on that libllama-common has of cpp-httplib: HTTPS or not."""
    secure = b"SSLClient" in (libraries / "libllama-common.so").read_bytes()
    return ("-DLLAMA_SUBPROCESS", *(("-DCPPHTTPLIB_OPENSSL_SUPPORT",) if secure else ()))


def code_of(files: Sequence[str], source: Path, work: Path) -> list[Path]:
    """The files to compile, by their patterns; templates are filled and written into `work`."""
    found = []
    for path in (path for pattern in files for path in sorted(source.glob(pattern))):
        if path.suffix != ".in":
            found.append(path)
            continue
        text = path.read_text()
        for written, value in NO_PAGE.items():
            text = text.replace(written, value)
        filled = work / path.stem
        filled.write_text(text)
        found += [filled] * (filled.suffix == ".cpp")
    return found


def run_quietly(command: list[str], trouble: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{trouble}:\n{' '.join(command)}\n{done.stdout[-4000:]}")
