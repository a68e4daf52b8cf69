"""Our pair, our bundle and our text models in frontends of other projects: they answer as `ask` does."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from gguf import GGUFReader

from luq_gguf.demo import CHECKPOINT, FRESH_SEED
from luq_gguf.demo.scenes import ask_about, draw_scene, make_scene
from luq_gguf.runtime import Runtime
from tests.frontends import python_server, readme_frontends, stock_server
from tests.node_frontend import NodeLlama, prepare_node_llama
from tests.program import result_of, run_program
from tests.serving import Server
from tests.stock import StockTools

pytestmark = pytest.mark.slow

Asked = tuple[str, Path | None]
Answers = dict[Asked, str]
WORDS = ("What is the opposite of hot?", "Count to 5.", "What color is grass?")
SYSTEM = "You are a helpful assistant."
"""What the demo's chat template writes where a chat has no system message."""


@dataclass(frozen=True)
class Demo:
    """The converted demo model, and the answers of `ask` to questions with a picture and without one."""

    text: Path
    vision: Path
    bundle: Path
    answers: Answers

    @property
    def blind(self) -> Answers:
        return {asked: answer for asked, answer in self.answers.items() if asked[1] is None}


@pytest.fixture(scope="module")
def node_llama() -> NodeLlama:
    return prepare_node_llama()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """Four layers in IQ1_M, the others as Q4_K_M makes them."""
    folder = tmp_path_factory.mktemp("demo")
    options = ("--low-layers", 4, "--calib", "shapes", "--samples", 48, "--no-eval", "--bundle", "--json")
    result = result_of(run_program("convert", CHECKPOINT, "--out", folder, *options))
    assert {"IQ1_M", "Q4_K", "Q6_K"} <= set(result["types"].values())
    text, vision, bundle = (Path(result[key]) for key in ("model", "mmproj", "bundle"))
    answers = {
        asked: ask(text, vision, *asked) for asked in [*draw_questions(folder), *((words, None) for words in WORDS)]
    }
    assert all(answers.values())
    assert len(set(answers.values())) > 4
    return Demo(text, vision, bundle, answers)


def draw_questions(folder: Path) -> Iterator[Asked]:
    """Pictures of fresh scenes, each with a question of another kind."""
    for number, kind in enumerate(("count", "color", "what", "where")):
        scene, path = make_scene(FRESH_SEED + number), folder / f"{kind}.png"
        draw_scene(scene).save(path)
        yield ask_about(scene, kind, random.Random(number)).text, path


def ask(text: Path, vision: Path, question: str, image: Path | None) -> str:
    seen = ("--image", image) if image else ()
    done = run_program("ask", text, "--mmproj", vision, *seen, question, "--threads", 1)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def answers_of(server: Server, questions: Iterable[Asked]) -> Answers:
    return {asked: server.ask(*asked) for asked in questions}


@pytest.mark.parametrize("file", ["text", "bundle"])
def test_llama_cpp_pythons_server_answers_as_ask_does(demo: Demo, file: str, tmp_path: Path) -> None:
    with python_server(getattr(demo, file), demo.vision, tmp_path) as server:
        assert answers_of(server, demo.answers) == demo.answers


@pytest.mark.parametrize("file", ["text", "bundle"])
def test_llama_server_answers_as_ask_does(demo: Demo, file: str, server_tools: StockTools, tmp_path: Path) -> None:
    with stock_server(server_tools, getattr(demo, file), demo.vision, tmp_path) as server:
        assert answers_of(server, demo.answers) == demo.answers
        assert server.request("/props")["modalities"]["vision"] is True


def test_servers_without_the_vision_part_answer_texts(demo: Demo, server_tools: StockTools, tmp_path: Path) -> None:
    with python_server(demo.text, None, tmp_path) as server:
        assert answers_of(server, demo.blind) == demo.blind
    with stock_server(server_tools, demo.text, None, tmp_path) as server:
        assert answers_of(server, demo.blind) == demo.blind


def test_llama_cpp_pythons_own_format_for_qwen_loses_the_last_line_end(demo: Demo, tmp_path: Path) -> None:
    """Why the README says `mtmd`: where this fails, llama-cpp-python has mended it."""
    with python_server(demo.text, demo.vision, tmp_path, chat_format="qwen2.5-vl") as server:
        assert answers_of(server, demo.answers) != demo.answers
        assert "<|im_start|>assistant\nadd_text: " in server.log.read_text(errors="replace")


@pytest.mark.parametrize("file", ["text", "bundle"])
def test_node_llama_cpp_says_what_llama_cpp_says(demo: Demo, file: str, node_llama: NodeLlama) -> None:
    with Runtime(demo.text, threads=1) as runtime:
        prompts = [runtime._prompt(question, (), with_image=False) for question, _ in demo.blind]
    found = node_llama.ask(getattr(demo, file), prompts=prompts, questions=WORDS, system=SYSTEM, mostTokens=64)
    assert found["continued"] == list(demo.blind.values())
    assert found["answers"] == list(demo.blind.values())
    fields = GGUFReader(demo.text).fields
    general = {name.removeprefix("general."): field.contents() for name, field in fields.items() if "general." in name}
    assert {"architecture", "name", "quantized_by", "file_type"} <= general.keys()
    assert found["general"] == general
    assert found["bytes"] == sum(int(tensor.n_bytes) for tensor in GGUFReader(demo.text).tensors)
    said = readme_frontends()["node-llama-cpp"]
    assert said == f"{found['version']}, with llama.cpp {found['llamaCpp']}"
