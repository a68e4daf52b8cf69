"""The help: every command in a group, with options in groups and an example that runs; the guide; completion."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
from typer.main import get_command

from luq_gguf.bundle import bundle
from luq_gguf.cli.app import app
from luq_gguf.cli.completion import high_types, low_types
from luq_gguf.cli.shape import GUIDE, PANELS
from luq_gguf.demo.scenes import draw_scene, make_scene, talk_about
from luq_gguf.planning import ORDERS
from luq_gguf.speed_budget import AUTO
from luq_gguf.type_names import HIGH_TYPES, LOW_TYPES, parse_high_type, parse_low_type
from luq_gguf.vqa.benchmarks import BENCHMARKS
from tests.exported import export_both
from tests.ggufs import dat_bytes
from tests.program import QUICK, Run, command, result_of, run_program

LONG = {"profile", "demo"}
"""Commands whose examples take minutes whatever the model."""
SHORTER: dict[str, tuple[str, ...]] = {
    "convert": tuple(map(str, QUICK)),
    "sweep": ("--calib", "shapes", "--samples", "10", "--presets", "none", "--step", "3"),
    "bench": ("--prompt", "8", "--generate", "2", "--repeat", "1"),
}
"""What makes an example take seconds."""
SPEED = ("--prompt", 8, "--generate", 2, "--repeat", 1, "--threads", 1)


def leaves(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command that does something, with its full name."""
    for name, found in group.commands.items():
        if hasattr(found, "commands"):
            yield from leaves(found, (*path, name))
        else:
            yield " ".join((*path, name)), found


COMMANDS = dict(leaves(get_command(app)))


def example_of(name: str) -> list[str]:
    """The words of the one example in a command's help, without the program's name."""
    (example,) = re.findall(r"^\s*Example: (.+)$", COMMANDS[name].help or "", flags=re.MULTILINE)
    program, *words = shlex.split(example)
    assert program == "luq-gguf"
    assert " ".join(words).startswith(name)
    return words


@pytest.fixture(scope="module")
def placeholders(converted: Run, pico_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which everything is there that the examples name, made of the pico model."""
    folder = tmp_path_factory.mktemp("examples")
    result = result_of(converted)
    made = Path(result["model"]).parent
    for name in ("Qwen2.5-VL-7B-Instruct", "Qwen2.5-VL-3B-Instruct"):
        shutil.copytree(pico_checkpoint, folder / "Qwen" / name)
    for name in ("qwen", "qwen-analysis"):
        shutil.copytree(made, folder / name)
    (folder / "16bit").mkdir()
    text, vision = export_both(pico_checkpoint, folder / "16bit")
    sources = {
        "model-LUQ.gguf": result["model"], "model-Q4_K_M.gguf": result["model"], "model-F16.gguf": text,
        "mmproj-model-F16.gguf": vision, "plan.json": made / "plan.json", "imatrix.gguf": made / "imatrix.gguf",
    }  # fmt: skip
    for name, source in sources.items():
        shutil.copy(source, folder / name)
    bundle(folder / "model-LUQ.gguf", vision, folder / "model-LUQ-bundle.gguf")
    write_matrix(folder / "code.dat", folder / "model-F16.gguf")
    write_pictures(folder)
    for name in ("laptop.json", "server.json"):
        done = run_program("bench", folder / "model-LUQ.gguf", *SPEED, "--json", folder / name)
        assert done.returncode == 0, done.stderr
    return folder


def write_matrix(target: Path, model: Path) -> None:
    """An importance matrix in llama.cpp's older form."""
    shapes = {tensor.name: tensor.shape.tolist() for tensor in gguf.GGUFReader(model).tensors}
    widths = {name: shape[0] for name, shape in shapes.items() if name.startswith("blk.") and len(shape) == 2}
    target.write_bytes(dat_bytes([(name.encode(), 3, [1.0] * width) for name, width in widths.items()], 3, b"code"))


def write_pictures(folder: Path) -> None:
    rows = []
    for number in range(12):
        draw_scene(make_scene(number)).save(folder / f"scene-{number}.png")
        question = talk_about(make_scene(number), turns=1)[0]
        rows.append({"image": f"scene-{number}.png", "question": question.text, "answer": question.answer})
    (folder / "my-images.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw_scene(make_scene(1)).save(folder / "photo.jpg")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in COMMANDS]
)
def test_the_example_of_every_command_runs(name: str, converted: Run, placeholders: Path, tmp_path: Path) -> None:
    """Sizes are the pico model's; whatever else an example names stands in the folder."""
    folder = tmp_path / "here"
    shutil.copytree(placeholders, folder)
    size = str(result_of(converted)["size_bytes"])
    words = [size if re.fullmatch(r"[\d.]+GiB", word) else word for word in example_of(name)]
    path = os.pathsep.join([str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        command(*words, *SHORTER.get(name, ())), cwd=folder, env={**os.environ, "PYTHONPATH": path}, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_help_shows_the_example() -> None:
    """That of all commands comes from the same text; here as it is printed."""
    name = "convert"
    done = subprocess.run(
        command(name, "--help"), capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"}
    )
    assert f"Example: luq-gguf {' '.join(example_of(name))}" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_stands_in_a_group(name: str) -> None:
    for option in COMMANDS[name].params:
        if option.param_type_name == "option" and option.name != "help":
            assert option.rich_help_panel, option.opts


def test_commands_are_grouped_by_what_people_do() -> None:
    group = get_command(app)
    panels = [group.commands[name].rich_help_panel for name in group.list_commands(None)]
    assert set(panels) == set(PANELS)
    assert panels == sorted(panels, key=PANELS.index), "each group is in one piece"
    shown = run_program("--help").stdout
    places = [shown.index(f"─ {panel} ─") for panel in PANELS]
    assert places == sorted(places)
    assert shown.index("convert ") < shown.index("bundle ")


def test_convert_with_nothing_explains_itself() -> None:
    done = run_program("convert")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == GUIDE
    assert len(done.stderr.splitlines()) < 20
    for line in re.findall(r"^  luq-gguf (.+)$", done.stderr, flags=re.MULTILINE):
        parsed = COMMANDS["convert"].make_context("convert", shlex.split(line)[1:])
        assert parsed.params["model"]
    for name in re.findall(r": +luq-gguf ([\w-]+)", done.stderr):
        assert name in COMMANDS
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    for heading in re.findall(r'"(.+?)"', done.stderr):
        assert f"## {heading}\n" in readme


def asked(line: str) -> dict[str, str]:
    """How bash asks for the last word of a line, by typer's protocol."""
    count = len(line.split(" "))
    return {"_LUQ_GGUF_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(count - 1)}


COMPLETED: list[tuple[str, list[str]]] = [
    ("luq-gguf conv", ["convert"]),
    ("luq-gguf calib s", ["show"]),
    ("luq-gguf convert m --mmproj-l", ["--mmproj-layout"]),
    ("luq-gguf convert m --order ", list(ORDERS)),
    ("luq-gguf convert m --low-type IQ", [name for name in LOW_TYPES if name.startswith("IQ")]),
    ("luq-gguf convert m --low-type iq1_", ["iq1_s", "iq1_m"]),
    ("luq-gguf convert m --low-type a", ["auto"]),
    ("luq-gguf plan m --high-type Q4_K", [name for name in HIGH_TYPES if name.startswith("Q4_K")]),
    ("luq-gguf convert m --compute-type ", ["auto", "bf16", "f32"]),
    ("luq-gguf convert m --mmproj-type ", ["f16", "bf16", "f32"]),
    ("luq-gguf export m --mmproj-layout ", ["exact", "no-class", "standard"]),
    ("luq-gguf export m --dtype ", ["auto", "f16", "bf16", "f32"]),
    ("luq-gguf analyze m --calib ", ["general", "shapes"]),
    ("luq-gguf analyze m --calib my-im", []),
    ("luq-gguf eval m --benchmark ", list(BENCHMARKS)),
    ("luq-gguf sweep m --order entropy,de", ["entropy,depth"]),
    ("luq-gguf sweep m --presets Q4_K_M,IQ1", ["Q4_K_M,IQ1_S", "Q4_K_M,IQ1_M"]),
]


@pytest.mark.parametrize(("line", "offered"), COMPLETED, ids=lambda value: str(value)[-24:])
def test_a_shell_completes_values_that_are_known(monkeypatch, capsys, line: str, offered: list[str]) -> None:
    for name, value in asked(line).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        app([], prog_name="luq-gguf")
    assert ended.value.code == 0
    assert sorted(capsys.readouterr().out.split()) == sorted(offered)


def test_the_program_completes() -> None:
    """The protocol goes through the process that watches over the commands, too."""
    line = "luq-gguf convert m --low-type IQ1"
    done = subprocess.run(command(), capture_output=True, text=True, check=False, env={**os.environ, **asked(line)})
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.split()) == ["IQ1_M", "IQ1_S"]


def test_types_in_small_letters_are_understood() -> None:
    for complete, parse in ((low_types, parse_low_type), (high_types, parse_high_type)):
        names = [name for name in complete("q") if name != AUTO]
        assert len(names) > 5
        for name in names:
            assert parse(name).name.endswith(name.upper())


def test_completion_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom luq_gguf.cli import completion\n"
        "for name in ('low_types', 'high_types', 'orders', 'benchmarks', 'compute_types', 'mmproj_types', 'dtypes',\n"
        "             'layouts', 'calibration_sets'):\n    assert getattr(completion, name)(''), name\n"
        "heavy = {'torch', 'transformers', 'llama_cpp', 'sklearn'} & set(sys.modules)\nassert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_completion_can_be_installed_and_then_works_in_bash(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "SHELL": "/bin/bash"}
    program = f'"{sys.executable}" -m luq_gguf'
    installed = subprocess.run(
        ["bash", "--norc", "-c", f"{program} --install-completion; exit $?"], capture_output=True, text=True,
        check=False, env=environment,
    )  # fmt: skip
    assert installed.returncode == 0, installed.stderr
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "luq-gguf").write_text(f'#!/bin/sh\nexec {program} "$@"\n')
    (tmp_path / "bin" / "luq-gguf").chmod(0o755)
    script = (
        'source "$HOME/.bashrc"\nCOMP_WORDS=(luq-gguf convert m --order ent)\nCOMP_CWORD=4\n'
        '_luq_gguf_completion luq-gguf\nprintf "%s\\n" "${COMPREPLY[@]}"'
    )
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, check=True, env={**environment, "PATH": path}
    )
    assert done.stdout.split() == ["entropy", "entropy-input"], done.stderr
