"""llama.cpp's one log, with several runs of ours in it."""

from __future__ import annotations

import logging

import llama_cpp
import pytest

from luq_gguf.llama_log import KEPT_LINES, LlamaLog, quiet_llama


def complain(name: str) -> None:
    """Make llama.cpp log an error that names a file."""
    assert not llama_cpp.llama_model_load_from_file(name.encode(), llama_cpp.llama_model_default_params())


def test_whoever_ends_first_the_others_still_hear(capfd: pytest.CaptureFixture[str]) -> None:
    first, second = quiet_llama(), quiet_llama()
    one, two = first.__enter__(), second.__enter__()
    complain("both-hear.gguf")
    first.__exit__(None, None, None)
    complain("one-hears.gguf")
    second.__exit__(None, None, None)
    assert capfd.readouterr() == ("", "")
    assert any("both-hear.gguf" in line for line in one.lines)
    assert any("both-hear.gguf" in line for line in two.lines)
    assert any("one-hears.gguf" in line for line in two.lines)
    assert not any("one-hears.gguf" in line for line in one.lines)


def test_afterwards_the_log_is_shown_again(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "llama-cpp-python")  # a model that was opened without a word lets no error through
    with quiet_llama() as log:
        pass
    complain("shown.gguf")
    assert "shown.gguf" in capfd.readouterr().err
    assert log.lines == []


def test_the_line_that_tells_most_is_found_among_the_last() -> None:
    log = LlamaLog()
    assert log.last() == "it gave no reason"
    for number in range(3 * KEPT_LINES):
        log.add(f"line {number}\n".encode())
    assert len(log.lines) == KEPT_LINES
    log.add(b"tensor x: Failed to read\nbye\xff\n")
    log.add(None)
    assert log.last() == "tensor x: Failed to read"
