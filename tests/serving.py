"""A frontend's server on this machine: started on a free port, awaited, asked over HTTP, stopped with all it started.

Knows nothing of which server it is; what it printed is shown where it dies or refuses.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
PATIENCE = 900.0
"""Seconds after which a server that neither answers nor ends is given up."""
Content = str | list[dict[str, Any]]
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
GREEDY = {"temperature": 0, "repeat_penalty": 1.0}
"""llama-cpp-python's server punishes repetitions unless it is told not to."""


@dataclass(frozen=True)
class Server:
    """One that answers."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def request(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """What it answers, as JSON; AssertionError with its own words where it refuses."""
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with OPENER.open(asked, timeout=PATIENCE) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                said = error.read().decode(errors="replace")
            raise AssertionError(f"{path}: {error}\n{said}\n{self.printed()}") from error

    def ask(self, question: str, image: Path | None = None) -> str:
        """The greedy answer of the OpenAI interface, to a question about an image or without one."""
        content = parts(question, image) if image else question
        return str(self.choose(content, max_tokens=64)["message"]["content"]).strip()

    def first_tokens(self, content: Content) -> list[dict[str, Any]]:
        """What it holds likely as the first token of its answer: "token" and "logprob" of the ten most likely."""
        choice = self.choose(content, max_tokens=1, logprobs=True, top_logprobs=10)
        found: list[dict[str, Any]] = choice["logprobs"]["content"]
        return list(found[0]["top_logprobs"])

    def choose(self, content: Content, **options: Any) -> dict[str, Any]:
        """The one choice of a chat completion for a user's message."""
        messages = [{"role": "user", "content": content}]
        answer = self.request("/v1/chat/completions", {"messages": messages, **GREEDY, **options})
        (choice,) = answer["choices"]
        return dict(choice)

    def printed(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def answers(self, path: str) -> bool:
        """Whether it is ready; a server that has ended is an error."""
        if self.process.poll() is not None:
            raise AssertionError(f"the server ended with exit {self.process.returncode}\n{self.printed()}")
        try:
            with OPENER.open(self.url + path, timeout=PATIENCE) as answer:
                return int(answer.status) == 200
        except urllib.error.HTTPError as error:  # 503: the model is being loaded
            error.close()
            return False
        except OSError:  # it does not listen yet
            return False


def parts(question: str, image: Path | None = None) -> Content:
    """A message in parts; a PNG file stands in front of the question as a URL that holds it."""
    text = {"type": "text", "text": question}
    if image is None:
        return [text]
    url = "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()
    return [{"type": "image_url", "image_url": {"url": url}}, text]


@contextlib.contextmanager
def serving(
    command: Callable[[int], Sequence[str]], health: str, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Run `command` of a port until the block ends; it is entered when the path `health` answers.

    Port and host are told by variables too, which some servers prefer to their arguments.
    """
    port = free_port()
    variables = os.environ | {"HOST": HOST, "PORT": str(port)} | (environment or {})
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(port), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            env=variables,
        )  # fmt: skip
    server = Server(f"http://{HOST}:{port}", process, log)
    try:
        await_answer(server, health)
        yield server
    finally:
        stop(process)


def await_answer(server: Server, health: str) -> None:
    """Ask again and again; the child's end is noticed at once."""
    until = time.monotonic() + PATIENCE
    while not server.answers(health):
        if time.monotonic() > until:
            raise AssertionError(f"the server does not answer\n{server.printed()}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(0.1)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End it and whatever it started."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sent)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
    process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
