"""The child that renders chat templates: limits hold, and it serves on after a template that broke them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from luq_gguf.chat import ChatRenderer, render_chats
from luq_gguf.errors import CheckpointError

WHO = [{"role": "user", "content": "Who?"}]
LOOP = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"


def test_many_prompts_come_in_their_order_from_one_child() -> None:
    chats = [[{"role": "user", "content": f"number {number} \u00e4 \ud800"}] for number in range(500)]
    with ChatRenderer("{{ messages[0].content }}") as renderer:
        assert renderer.render(chats) == [chat[0]["content"] for chat in chats]
        first = renderer._process
        assert renderer.render(chats[:1]) == [chats[0][0]["content"]]
        assert renderer._process is first


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (LOOP, "longer than"),
        ("{{ 'a' * 10**10 }}", "memory"),
        ("{{ [[0] * 10**8] }}", "memory"),
        ("{% set n = namespace(a='x') %}{% for i in range(40) %}{% set n.a = n.a + n.a %}{% endfor %}", "memory"),
        ("{{ '%0999999999d' % 1 }}", "memory"),
        ("{{ 'a' * 20000000 }}", "characters"),
        ("{{ cycler.__init__.__globals__ }}", "unsafe"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe|undefined"),
        ("{{ '{0.__class__.__mro__}'.format(1) }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ " + "(" * 3000 + ")" * 3000 + " }}", "."),
        ("{{ raise_exception('a\n\x1b[31mb') }}", "a .*b"),
    ],
    ids=str,
)
def test_limits_hold_and_the_renderer_goes_on(template: str, reason: str) -> None:
    with ChatRenderer(template, seconds=1.5) as renderer:
        with pytest.raises(CheckpointError, match=f"chat template fails: .*{reason}") as caught:
            renderer.render([WHO])
        assert str(caught.value).isprintable()
        renderer.template = "{{ messages[0].content }}"
        assert renderer.render([WHO]) == ["Who?"]


def test_the_limit_is_of_each_request_and_not_of_the_child() -> None:
    work = "{% for a in range(900) %}{% for b in range(900) %}{% endfor %}{% endfor %}x"
    with ChatRenderer(work, seconds=2) as renderer:
        for _ in range(25):
            assert renderer.render([WHO, WHO, WHO]) == ["x"] * 3


def test_a_child_that_was_killed_is_started_again() -> None:
    with ChatRenderer("{{ messages[0].content }}") as renderer:
        renderer.render([WHO])
        assert renderer._process is not None
        renderer._process.kill()
        renderer._process.wait()
        with pytest.raises(CheckpointError, match="chat template fails"):
            renderer.render([WHO])
        assert renderer.render([WHO]) == ["Who?"]


def test_no_template_is_told_without_a_child() -> None:
    with pytest.raises(CheckpointError, match="no chat template"):
        render_chats("", [WHO])


def test_the_child_imports_little() -> None:
    code = "import sys, luq_gguf.chat_worker\nprint(sorted({'numpy', 'torch', 'gguf', 'PIL'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
