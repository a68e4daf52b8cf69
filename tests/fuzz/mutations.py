"""Damage for files: bytes, JSON, safetensors headers, GGUF headers and texts, all from a random.Random alone."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

Mutation = Callable[[bytes, random.Random], bytes]

NUMBERS = (
    0, 1, -1, 2, 7, 255, 256, 65535, 1 << 20, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 10**9, 1 << 53,
    (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, 10**40, 0.0, -0.0, 0.5, 1e-45, 1e38, 1e308, -1e308,
)  # fmt: skip
TEXTS = (
    "", " ", "\0", "a\nb", "../x", "/etc/passwd", "..", "x" * 5000, "\ud800", "\u202e", "%s%n", "{{ 1 }}",
    "²", "٣", "NaN",
    "model.safetensors", "<|image_pad|>", "\x1b[31m", "--help", "(a+)+$", "[", "é" * 100,
)  # fmt: skip
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"": {}}, [None] * 50, {"a": 1}, ["a", "b"], [0] * 9)
RAW_NUMBERS = (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 5000, b"-0", b"0x10", b"1_000", b"1e-999")


def damage_bytes(data: bytes, rng: random.Random, *, head: int | None = None) -> bytes:
    """One to four cuts, flips, splices and repeats; with `head` most of them within the first bytes."""
    content = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        limit = len(content) if head is None or rng.random() < 0.1 else min(head, len(content))
        _DAMAGE[rng.randrange(len(_DAMAGE))](content, rng, max(limit, 1))
    return bytes(content)


def _flip(content: bytearray, rng: random.Random, limit: int) -> None:
    if content:
        content[rng.randrange(min(limit, len(content)))] ^= 1 << rng.randrange(8)


def _set(content: bytearray, rng: random.Random, limit: int) -> None:
    place = rng.randrange(limit)
    content[place : place + 1] = bytes([rng.choice((0, 1, 0x20, 0x7F, 0x80, 0xFF, rng.randrange(256)))])


def _cut(content: bytearray, rng: random.Random, limit: int) -> None:
    del content[rng.randrange(limit) :]


def _remove(content: bytearray, rng: random.Random, limit: int) -> None:
    place = rng.randrange(limit)
    del content[place : place + rng.randint(1, 64)]


def _insert(content: bytearray, rng: random.Random, limit: int) -> None:
    place = rng.randrange(limit)
    content[place:place] = rng.randbytes(rng.randint(1, 32))


def _splice(content: bytearray, rng: random.Random, limit: int) -> None:
    place, source, size = rng.randrange(limit), rng.randrange(limit), rng.randint(1, 256)
    content[place : place + size] = content[source : source + size]


def _repeat(content: bytearray, rng: random.Random, limit: int) -> None:
    place, size = rng.randrange(limit), rng.randint(1, 64)
    content[place:place] = content[place : place + size] * rng.choice((1, 2, 50))


def _put_number(content: bytearray, rng: random.Random, limit: int) -> None:
    place, width = rng.randrange(limit), rng.choice((2, 4, 8))
    value = rng.choice([number for number in NUMBERS if isinstance(number, int)]) + rng.choice((0, 0, 1, -1))
    content[place : place + width] = (value % (1 << 8 * width)).to_bytes(width, rng.choice(("little", "big")))


_DAMAGE = (_flip, _flip, _set, _cut, _remove, _insert, _splice, _repeat, _put_number, _put_number, _put_number)


def damage_json(data: bytes, rng: random.Random) -> bytes:
    """Values of other types and sizes, keys gone, renamed and twice, deep nesting; now and then bytes."""
    if rng.random() < 0.15:
        return damage_bytes(data, rng)
    content = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        content = _change(content, rng)
    text = json.dumps(content, ensure_ascii=rng.random() < 0.9).encode("utf-8", errors="surrogatepass")
    if rng.random() < 0.1 and b": 1" in text:
        place = rng.choice([at for at in range(len(text)) if text.startswith(b": ", at)])
        text = text[: place + 2] + rng.choice(RAW_NUMBERS) + text[place + 2 :].lstrip(b"0123456789.-")
    return text


def _change(content: Any, rng: random.Random) -> Any:
    content = copy.deepcopy(content)
    places = list(_places(content))
    if not places:
        return _value(rng, content)
    holder, key = rng.choice(places)
    kind = rng.random()
    if kind < 0.6:
        holder[key] = _value(rng, holder[key])
    elif kind < 0.75:
        del holder[key]
    elif kind < 0.85 and isinstance(holder, dict):
        holder[rng.choice((*TEXTS, *holder))] = holder.pop(key)
    elif kind < 0.95:
        other, name = rng.choice(places)
        holder[key] = copy.deepcopy(other[name])
    else:
        for _ in range(rng.choice((1, 5, 400, 2000))):
            holder[key] = [holder[key]] if rng.random() < 0.5 else {"a": holder[key]}
    return content


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a value; of long lists and mappings the first and last few."""
    stack = [content]
    while stack:
        item = stack.pop()
        keys = list(item) if isinstance(item, dict) else list(range(len(item))) if isinstance(item, list) else []
        for key in keys if len(keys) <= 40 else [*keys[:20], *keys[-20:]]:
            yield item, key
            stack.append(item[key])


def _value(rng: random.Random, old: Any) -> Any:
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(NUMBERS)
    if kind < 0.6:
        return rng.choice(TEXTS)
    if kind < 0.8:
        return copy.deepcopy(rng.choice(OTHERS))
    if isinstance(old, bool) or not isinstance(old, int | float):
        return [old] * rng.choice((1, 2, 30))
    return old + rng.choice((1, -1, 0.5, old, 1 << 32))


def damage_safetensors(data: bytes, rng: random.Random) -> bytes:
    """The header's JSON, the header's length, or bytes of the whole."""
    length = int.from_bytes(data[:8], "little")
    kind = rng.random()
    if kind < 0.6:
        header = damage_json(data[8 : 8 + length], rng)
        return len(header).to_bytes(8, "little") + header + data[8 + length :]
    if kind < 0.7:
        number = rng.choice(
            (0, 1, 7, 8, length - 1, length + 1, len(data), len(data) - 8, 1 << 25, 1 << 63, (1 << 64) - 1)
        )
        return (number % (1 << 64)).to_bytes(8, "little") + data[8:]
    return damage_bytes(data, rng, head=8 + length)


def damage_gguf(data: bytes, rng: random.Random) -> bytes:
    """The counts, or bytes and numbers of the header, or a cut."""
    if rng.random() < 0.15:
        place = rng.choice((4, 8, 16))
        number = rng.choice([value for value in NUMBERS if isinstance(value, int)]) % (1 << 64)
        return data[:place] + struct.pack("<Q", number) + data[place + 8 :]
    head = min(len(data), max(64, int(len(data) * rng.choice((0.02, 0.2, 1.0)))))
    return damage_bytes(data, rng, head=head)


def damage_template(data: bytes, rng: random.Random) -> bytes:
    """Pieces of Jinja in the middle of a template, or bytes."""
    if rng.random() < 0.3:
        return damage_bytes(data, rng)
    text = data.decode()
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(text) + 1)
        if rng.random() < 0.7:
            place = text.find("{", place) if text.find("{", place) >= 0 else place
        piece = rng.choice(PIECES)
        text = text[:place] + piece + text[place + rng.choice((0, 0, 1, len(piece))) :]
    return text.encode()


PIECES = (
    "{% for i in range(99999) %}{% for j in range(99999) %}", "{% endfor %}", "{{ 'a' * 10**9 }}", "{{ [0] * 10**9 }}",
    "{{ messages.__class__ }}", "{{ cycler.__init__.__globals__ }}", "{{ ''.format(messages) }}", "{% if %}", "{{",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{% include '/etc/passwd' %}", "{% import 'os' as os %}",
    "{{ 9 ** 9 ** 9 ** 9 }}", "{{ messages | tojson(indent=10**8) }}", "{{ strftime_now('%' * 9999) }}", "{% raw %}",
    "{{ raise_exception('no') }}", "{{ lipsum(n=10**6) }}", "{{ range(10**5) | list | string * 9999 }}", "{# ",
    "{% set ns = namespace(a='xy') %}{% for i in range(40) %}{% set ns.a = ns.a + ns.a %}{% endfor %}{{ ns.a }}",
    "{{ joiner }}", "{{ messages[10**9] }}", "{{ '%099999999d' % 1 }}", "{{ 'x'.center(10**9) }}", "\ufeff", "\0",
    "{{ messages | map(attribute='__class__') | list }}", "{% filter replace('', 'aaaaaaaa' * 99999) %}",
    "{{ (1,) * 10**8 }}", "{{ dict(a=1).items | attr('__self__') }}", "{{ messages | batch(10**9) | list }}",
    "{{ '{0.__class__}'.format(1) }}", "{{ 1 / 0 }}", "{% break %}", "{% autoescape true %}", "{{ self }}",
    "{{ messages | urlize }}", "{{ 'a b ' * 99999 | wordwrap(1) }}",
)  # fmt: skip


def damage_text(data: bytes, rng: random.Random) -> bytes:
    """Lines doubled, dropped, swapped, or with something strange in them; or bytes."""
    if rng.random() < 0.3:
        return damage_bytes(data, rng)
    lines = data.decode("utf-8").split("\n")
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(lines))
        kind = rng.random()
        if kind < 0.3:
            lines[place] = lines[place] + rng.choice((*TEXTS, *YAML))
        elif kind < 0.6:
            lines[place:place] = [rng.choice(YAML)]
        elif kind < 0.8:
            del lines[place]
            lines = lines or [""]
        else:
            lines[place:place] = [lines[rng.randrange(len(lines))]] * rng.choice((1, 3, 100))
    return "\n".join(lines).encode("utf-8", errors="surrogatepass")


YAML = (
    "tags: &a [x, *a]", "name: 7", "name: [1, 2]", "tags: {a: b}", "license: !!python/object:os.system {}", "---",
    "- - - -",
    "base_model: [1, {}, null, [x]]", "datasets: {a: {b: c}}", "a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a]",
    "tags: [*a, *b]", "name: 2020-01-01", "version: 1:1:1:1:1", "language: no", "license: &x {<<: *x}", "? [a]",
    "name: |",
    "name: !!binary aGk=", "size_label: .nan", "model_name: " + "9" * 5000, "{" * 500, "tags: " + "[" * 2000,
)  # fmt: skip
