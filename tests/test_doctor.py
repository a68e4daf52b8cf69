"""The doctor: what it makes of facts, that its facts are true here, and that what is broken gets a line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import psutil
import pytest

from luq_gguf import __version__
from luq_gguf.artifacts import write_record
from luq_gguf.doctor import GIB, Facts, Finding, Report, examine
from luq_gguf.doctor_facts import find_profile, required_libraries
from luq_gguf.processor_limits import Quota, measure_load, processor_quota
from luq_gguf.processors import cpu_name
from luq_gguf.profile import profile_path
from luq_gguf.speed import Profile
from tests.program import Run, command

WELL: dict[str, Any] = {
    "luq_gguf": "0.1.0",
    "python": "3.11.7",
    "libraries": [{"name": "gguf", "wanted": "<0.20,>=0.19", "version": "0.19.0", "fits": True}],
    "trials": {"torch": {"version": "2.13.0"}},
    "llama": {
        "version": "0.3.36", "build": "ggml 0.25.3", "native_for": "0.3.36",
        "instructions": ["SSE3", "AVX2", "AVX512", "FMA", "F16C", "AVX512_VNNI"],
    },
    "machine": {
        "cpu": "Some CPU", "physical_cores": 8, "logical_cores": 16, "usable": 16, "memory_bytes": 32 * GIB,
        "governor": "performance", "system": "Some Linux",
        "flags": ["avx2", "avx512f", "avx512_vnni", "avx_vnni", "fma", "f16c"],
    },
    "limits": {"memory": 20 * GIB, "swap_total": 8 * GIB, "files": 1024},
    "activity": {"busy": 3.0, "stolen": 0.0},
    "places": [
        {"name": "this folder", "folder": "/home/me", "free": 100 * GIB, "writable": True},
        {"name": "temporary files", "folder": "/tmp", "free": 100 * GIB, "writable": True},
        {"name": "profiles", "folder": "/home/me/.cache/luq-gguf", "free": 100 * GIB, "writable": True},
    ],
    "profile": {"path": "profile.json", "found": True, "threads": [1, 8]},
}  # fmt: skip


def report_of(**changes: Any) -> Report:
    """The report on a machine that is well, with parts of its facts changed."""
    facts = json.loads(json.dumps(WELL))
    for part, change in changes.items():
        if isinstance(change, dict) and part != "trials":
            facts[part] |= change
        else:
            facts[part] = change
    return examine(Facts.model_validate_json(json.dumps(facts)))


def place(name: str, **change: Any) -> list[dict[str, Any]]:
    return [{"name": name, "folder": "/there", "free": 100 * GIB, "writable": True} | change]


def library(**change: Any) -> list[dict[str, Any]]:
    return [{"name": "gguf", "wanted": "<0.20,>=0.19", "version": "0.19.0", "fits": True} | change]


MANY_FLAGS = ["avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_tile", "fma", "f16c"]
CASES: list[tuple[dict[str, Any], str, str, tuple[str, ...]]] = [
    (
        {"libraries": library(version="0.18.0", fits=False)},
        "gguf",
        "broken",
        ("0.18.0", "<0.20,>=0.19", "pip"),
    ),
    ({"libraries": library(version=None, fits=False)}, "gguf", "broken", ("not installed", "'gguf<0.20,>=0.19'")),
    ({"libraries": []}, "libraries", "mind", ("not installed", "pip install .")),
    ({"trials": {"torch": {"problem": "OSError: libtorch.so"}}}, "torch", "broken", ("libtorch.so", "pip install")),
    (
        {"llama": {"problem": "RuntimeError: no"}},
        "llama.cpp",
        "broken",
        ("RuntimeError: no", "llama-cpp-python==0.3.36"),
    ),
    ({"llama": {"instructions": ["FMA", "F16C"]}}, "instructions", "mind", ("AVX2, AVX512", "GGML_NATIVE=ON")),
    ({"llama": {"instructions": ["AVX2", "AMX_INT8"]}}, "llama.cpp", "broken", ("AMX_INT8", "another processor")),
    ({"llama": {"native_for": "0.3.35"}}, "native module", "broken", ("0.3.35", "0.3.36", "install luq_gguf again")),
    ({"llama": {"native_for": None, "native_problem": "ImportError: it"}}, "native module", "broken", ("ImportError",)),
    ({"machine": {"flags": MANY_FLAGS}}, "instructions", "mind", ("without AMX_INT8,",)),
    (
        {"machine": {"flags": ["f16c"]}, "llama": {"instructions": ["F16C"]}},
        "vectors",
        "mind",
        ("neither AVX2 nor NEON",),
    ),
    ({"machine": {"physical_cores": 2}}, "cores", "mind", ("only 2", "luq-gguf profile")),
    ({"machine": {"usable": 3}}, "cores", "mind", ("only 3", "--low-type auto")),
    ({"machine": {"governor": "performance, powersave"}}, "governor", "mind", ("powersave", "cpupower")),
    ({"activity": {"busy": 60.0}}, "load", "mind", ("60 %", "close them")),
    ({"activity": {"stolen": 9.0}}, "neighbours", "mind", ("9 %", "another time")),
    ({"activity": {"battery": True}}, "power", "mind", ("battery", "plug")),
    ({"limits": {"processors": 2.5}}, "quota", "mind", ("2.5 of 16", "--threads 2")),
    ({"limits": {"processors": 0.5}}, "quota", "mind", ("0.5 of 16", "--threads 1")),
    ({"limits": {"throttled": 12.0}}, "throttling", "mind", ("12 %", "--threads")),
    ({"limits": {"threads": "1"}}, "threads", "mind", ("OMP_NUM_THREADS=1", "unset")),
    ({"limits": {"memory": 2 * GIB}}, "memory", "mind", ("2.0 GiB can be had", "--dry-run")),
    ({"limits": {"group_memory": 4 * GIB}}, "memory limit", "mind", ("4.0 GiB", "docker")),
    ({"limits": {"addresses": 8 * GIB}}, "ulimit", "mind", ("8.0 GiB", "ulimit -v")),
    ({"limits": {"swap_used": 12 * GIB}}, "swap", "mind", ("12.0 GiB", "close")),
    ({"limits": {"files": 64}}, "open files", "mind", ("64", "ulimit -n")),
    ({"places": place("this folder", free=5 * GIB)}, "this folder", "mind", ("5.0 GiB free in /there", "--dry-run")),
    ({"places": place("this folder", writable=False)}, "this folder", "mind", ("/there cannot be written",)),
    ({"places": place("temporary files", writable=False)}, "temporary files", "broken", ("TMPDIR",)),
    ({"places": place("profiles", writable=False)}, "profiles", "mind", ("/there",)),
    ({"places": place("this folder", free=None)}, "this folder", "mind", ("/there",)),
    ({"profile": {"found": False, "others": 2}}, "profile", "mind", ("2 of other", "luq-gguf profile")),
    ({"profile": {"busy": True}}, "profile", "mind", ("other programs", "luq-gguf profile")),
    ({"profile": {"problem": "cut"}}, "profile", "mind", ("profile.json: cut", "luq-gguf profile")),
]


def test_a_machine_that_is_well_has_nothing_to_mind() -> None:
    report = report_of()
    assert report.usable
    assert {finding.mark for finding in report.findings} == {"ok"}
    assert not [finding for finding in report.findings if finding.hint]


@pytest.mark.parametrize(("changes", "name", "mark", "words"), CASES, ids=lambda value: str(value)[:40])
def test_what_is_to_be_minded(changes: dict[str, Any], name: str, mark: str, words: tuple[str, ...]) -> None:
    """One cause has one line, with a hint; and only what is broken makes a machine unusable."""
    report = report_of(**changes)
    (found,) = [finding for finding in report.findings if finding.mark != "ok"]
    assert (found.name, found.mark) == (name, mark)
    assert found.hint
    for word in words:
        assert word in f"{found.found} -> {found.hint}"
    assert report.usable == (mark != "broken")


@pytest.mark.parametrize(
    "changes",
    [
        {"llama": {"instructions": ["AVX2", "AVX512", "FMA", "F16C", "AVX512_VNNI", "AVX512_VBMI", "OPENMP"]}},
        {"limits": {"processors": 16.0, "group_memory": 64 * GIB, "addresses": 64 * GIB, "swap_used": GIB}},
        {"machine": {"governor": None}},
        {"machine": {"flags": []}},
    ],
    ids=str,
)
def test_what_is_as_it_should_be(changes: dict[str, Any]) -> None:
    assert {finding.mark for finding in report_of(**changes).findings} == {"ok"}


def doctor(*options: str, timeout: float = 600, **environment: str) -> Run:
    """The program's doctor, in an environment that may be crippled."""
    kept = {name: value for name, value in os.environ.items() if name not in environment}
    return subprocess.run(
        command("doctor", *options),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**kept, **environment},
    )


def told(done: Run) -> dict[str, Finding]:
    """The findings that it printed as JSON, by name; the exit code goes with them."""
    assert "Traceback" not in done.stderr, done.stderr
    report = Report.model_validate_json(done.stdout)
    broken = [finding for finding in report.findings if finding.mark == "broken"]
    assert (done.returncode, report.usable) == (1 if broken else 0, not broken), done.stdout
    return {finding.name: finding for finding in report.findings}


def cpuinfo() -> dict[str, str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    pairs = (line.partition(":") for line in reversed(lines))
    return {name.strip(): value.strip() for name, _, value in pairs if name}


@pytest.fixture(scope="module")
def here() -> Run:
    return doctor("--json", OMP_NUM_THREADS="1")


def test_nothing_is_broken_here(here: Run) -> None:
    findings = told(here)
    assert here.returncode == 0
    assert llama_cpp.__version__ in findings["llama.cpp"].found
    assert findings["native module"].mark == "ok"
    assert __version__ in findings["luq_gguf"].found
    assert findings["threads"].mark == "mind"


def test_what_it_says_of_this_machine_is_so(here: Run) -> None:
    facts, info = Report.model_validate_json(here.stdout).facts, cpuinfo()
    assert facts.machine.cpu == info.get("model name", cpu_name())
    flags = (info.get("flags") or info.get("Features") or "").split()
    for name in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_tile", "fma", "f16c", "sve"):
        assert (name in facts.machine.flags) == (name in flags)
    assert facts.machine.memory_bytes == psutil.virtual_memory().total
    assert facts.machine.usable == len(os.sched_getaffinity(0))
    assert facts.limits.memory > 0
    said = llama_cpp.llama_print_system_info().decode()
    assert facts.llama.instructions
    for name in facts.llama.instructions:
        assert f"{name} = 1" in said
    assert {library.name: library.version for library in facts.libraries}["llama-cpp-python"] == llama_cpp.__version__
    folders = {place.name: place for place in facts.places}
    assert folders["this folder"].folder == str(Path.cwd())
    assert folders["this folder"].free == pytest.approx(shutil.disk_usage(Path.cwd()).free, rel=0.5)


def test_the_table_has_a_line_and_a_hint_for_what_is_to_be_minded(here: Run) -> None:
    done = doctor(OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    row = next(place for place, line in enumerate(lines) if line.startswith("mind  threads"))
    assert lines[row + 1].split()[:2] == ["->", "unset"]
    assert lines[-1].startswith("nothing is broken, ")
    assert "\x1b" not in done.stdout


BLOCK = """
import os, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in os.environ["MISSING"].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""


@pytest.fixture
def without(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """An environment in which Python finds some modules no more."""
    (tmp_path / "sitecustomize.py").write_text(BLOCK)
    return lambda modules: {"PYTHONPATH": str(tmp_path), "MISSING": modules}


def test_modules_that_are_missing_get_a_line_each(without, tmp_path: Path) -> None:
    findings = told(doctor("--json", **without("torch,luq_gguf._native")))
    assert findings["torch"].mark == "broken"
    assert "No module named 'torch'" in findings["torch"].found
    assert findings["native module"].mark == "broken"
    assert "install luq_gguf again" in findings["native module"].hint
    assert findings["llama.cpp"].mark == "ok"


def test_llama_cpp_that_cannot_be_imported_gets_a_line(without) -> None:
    done = doctor(**without("llama_cpp"))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    row = next(line for line in done.stdout.splitlines() if "llama.cpp" in line)
    assert row.startswith("broken")
    assert "No module named 'llama_cpp'" in row
    assert done.stdout.splitlines()[-1].startswith("1 broken, ")


def test_what_the_program_itself_cannot_go_without_gets_a_line(without) -> None:
    done = doctor(**without("gguf"))
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("luq-gguf: a library is missing: No module named 'gguf'")


def test_a_command_that_misses_a_library_names_the_doctor(without, pico_checkpoint: Path, tmp_path: Path) -> None:
    arguments = command("analyze", pico_checkpoint, "--out", tmp_path / "out")
    environment = {**os.environ, **without("torch")}
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert "No module named 'torch'; `luq-gguf doctor`" in done.stderr.splitlines()[-1]


def test_libraries_of_another_version_get_a_line(tmp_path: Path) -> None:
    """A llama-cpp-python that calls itself another version, and metadata of an old gguf."""
    package = Path(llama_cpp.__file__).parent
    ignored = shutil.ignore_patterns("lib", "__pycache__", "server")
    copy = Path(shutil.copytree(package, tmp_path / "llama_cpp", ignore=ignored))
    (copy / "lib").symlink_to(package / "lib")
    init = copy / "__init__.py"
    init.write_text(init.read_text().replace(llama_cpp.__version__, "0.2.1"))
    (tmp_path / "gguf-0.1.0.dist-info").mkdir()
    (tmp_path / "gguf-0.1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: gguf\nVersion: 0.1.0\n")
    findings = told(doctor("--json", PYTHONPATH=str(tmp_path)))
    assert findings["gguf"].mark == findings["native module"].mark == "broken"
    assert "0.1.0 is installed" in findings["gguf"].found
    assert "0.2.1 is installed" in findings["native module"].found


def test_a_library_that_is_cut_short_gets_a_line(tmp_path: Path) -> None:
    package = Path(llama_cpp.__file__).parent
    for path in (package / "lib").glob("*.so"):
        (tmp_path / path.name).write_bytes(path.read_bytes()[:100_000])
    findings = told(doctor("--json", LLAMA_CPP_LIB_PATH=str(tmp_path)))
    assert findings["llama.cpp"].mark == "broken"
    assert "cannot be used" in findings["llama.cpp"].found
    assert "native module" not in findings


def test_a_library_that_crashes_gets_a_line(tmp_path: Path) -> None:
    (tmp_path / "transformers.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    findings = told(doctor("--json", PYTHONPATH=str(tmp_path)))
    assert findings["transformers"].mark == "broken"
    assert "SIGILL" in findings["transformers"].found


def test_a_limit_of_the_shell_is_found() -> None:
    import resource

    code = (
        "import json, resource\n"
        f"resource.setrlimit(resource.RLIMIT_DATA, ({12 * GIB}, {resource.getrlimit(resource.RLIMIT_DATA)[1]}))\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        "from luq_gguf.doctor_facts import read_limits\nprint(read_limits().model_dump_json())"
    )
    found = json.loads(subprocess.check_output([sys.executable, "-c", code], text=True))
    assert (found["addresses"], found["files"]) == (12 * GIB, 200)
    names = {finding.name for finding in report_of(limits=found).findings if finding.mark == "mind"}
    assert {"ulimit", "open files"} <= names


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def test_the_least_of_the_groups_grants_the_processors(tmp_path: Path) -> None:
    assert processor_quota(tmp_path / "none", tmp_path / "none") == Quota(None, 0.0)
    (tmp_path / "cgroup").write_text("0::/user.slice/mine.scope\n")
    groups = tmp_path / "groups"
    group(groups / "user.slice/mine.scope", cpu__max="max 100000")
    group(groups / "user.slice", cpu__max="150000 100000", cpu__stat="usage_usec 5\nnr_periods 200\nnr_throttled 30")
    assert processor_quota(groups, tmp_path / "cgroup") == Quota(1.5, 15.0)
    group(groups / "user.slice/mine.scope", cpu__max="50000 100000", cpu__stat="nr_periods 0\nnr_throttled 0")
    assert processor_quota(groups, tmp_path / "cgroup") == Quota(0.5, 15.0)
    group(groups / "user.slice", cpu__max="nonsense", cpu__stat="nonsense")
    assert processor_quota(groups, tmp_path / "cgroup") == Quota(0.5, 0.0)


def test_groups_of_version_1_grant_processors_too(tmp_path: Path) -> None:
    group(tmp_path / "cpu", cpu__cfs_quota_us="400000", cpu__cfs_period_us="100000")
    assert processor_quota(tmp_path, tmp_path / "none").processors == 4
    group(tmp_path / "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert processor_quota(tmp_path, tmp_path / "none").processors is None


def test_a_busy_processor_is_seen() -> None:
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(psutil.cpu_count() or 1)]
    try:
        assert measure_load(1.0).busy > 50
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def test_the_profile_of_this_cpu_and_version_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert find_profile("0.3.36").found is False
    rates = {"row": 1.0, "weight": 1.0, "long_weight": 1.0, "prompt": 1.0}
    fields = ("generate_channel", "generate_unit", "generate_token", "prompt_channel", "prompt_unit", "prompt_token",
              "context_channel")  # fmt: skip
    profile = Profile.model_validate_json(json.dumps({
        "cpu": cpu_name(), "llama_cpp": "0.3.36", "prompt": 128, "cache": 32768, "busy": True, "bandwidth": {"2": 1e10},
        "rates": {"Q4_K": {"2": rates}}, "other": {"2": dict.fromkeys(fields, 1.0)},
    }))  # fmt: skip
    path = profile_path(cpu_name(), "0.3.36")
    path.parent.mkdir()
    write_record(path, profile)
    found = find_profile("0.3.36")
    assert (found.found, found.busy, found.threads, found.others) == (True, True, (2,), 0)
    other = find_profile("0.3.99")
    assert (other.found, other.others) == (False, 1)
    assert find_profile(None).found is False
    path.write_text("{")
    assert find_profile("0.3.36").problem


def test_what_luq_gguf_needs_is_read_from_its_own_metadata() -> None:
    found = {library.name: library for library in required_libraries()}
    assert found["llama-cpp-python"].wanted == f"=={llama_cpp.__version__}"
    assert not {"pytest", "ruff"} & set(found)
    assert all(library.fits for library in found.values())
