# SPDX-License-Identifier: GPL-2.0-only
"""Fuzzers: inputs that can be made again, each bounded in time, all of them in time and memory.

The ordinary run tries a tenth of what `make soak-long` does, by the same code.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

many_inputs = pytest.mark.parametrize(
    "count",
    [
        pytest.param(2_000, marks=pytest.mark.takes(seconds=20)),
        pytest.param(20_000, marks=pytest.mark.long),
    ],
)

# An input takes some milliseconds. This one bounds what waits for something that never comes, too.
_INPUT_SECONDS: Final = 120
# By how much the whole may be slower than its beginning promises, in processor time.
_SLOWER: Final = 10
_MEMORY_BYTES: Final = 300 << 20
# To try one input again: the name that its failure gave.
_ONLY: Final = os.environ.get("FUZZ_INPUT", "")
_PLACEHOLDER: Final = "\0here\0"

# Texts of JSON values, among them some that no parser should come to grief over.
ODD_JSON: Final = (
    "null",
    "true",
    "-1",
    "0",
    "1",
    "7",
    "0.5",
    "-0.0",
    "1e999",
    "NaN",
    "-Infinity",
    "1e15",
    str((1 << 63) - 1),
    str(1 << 64),
    "9" * 4300,
    "9" * 4301,
    '""',
    '"pid"',
    '"\\ud800"',
    '"\\u0000"',
    '"\\u001b[2J\\u001b]0;owned\\u0007"',
    '"\\u202e"',
    '"a b c"',
    '"none"',
    f'"{"x" * 300}"',
    f'"{"y z" * 30_000}"',
    f'"{"w" * 100_000}"',
    "[]",
    "[1,2]",
    '["a"]',
    '["a","a"]',
    "[[]]",
    "{}",
    '{"a":1}',
    '{"":{}}',
    "[null]",
    *("[" * n + "]" * n for n in (20, 31, 33, 400, 900, 20_000)),
    *('{"a":' * n + "1" + "}" * n for n in (31, 33, 900)),
    "[" + "1," * 20_000 + "1]",
)


def fuzz(target: str, count: int, try_input: Callable[[random.Random], None]) -> None:
    """Try so many inputs, each drawn from a generator of its own.

    Raises:
        AssertionError: one failed or took too long, which the text names, or all of them did.
    """
    names = [f"{target}/{number}" for number in range(count)]
    first, began = len(names) // 10, time.process_time()
    promised = 0.0
    with _bounded_memory():
        for number, name in enumerate(names):
            if _ONLY in {"", name}:
                _try_one(name, try_input)
            if number == first:
                promised = (time.process_time() - began) * 10
    assert time.process_time() - began < _SLOWER * promised + _INPUT_SECONDS


def _try_one(name: str, try_input: Callable[[random.Random], None]) -> None:
    try:
        with _bounded_time():
            try_input(random.Random(name))  # noqa: S311 - repeatable on purpose
    except Exception as error:
        raise AssertionError(f"FUZZ_INPUT={name} tries it again: {error!r}"[:2000]) from error


@contextlib.contextmanager
def _bounded_time() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise TimeoutError(f"it takes more than {_INPUT_SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(_INPUT_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _bounded_memory() -> Iterator[None]:
    """Have an allocation fail that goes beyond what this process has now, and `_MEMORY_BYTES`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + _MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def damaged_bytes(draw: random.Random, data: bytes, begin: int = 0, end: int | None = None) -> bytes:
    """Flip a bit of a part of the data, or overwrite, cut out, double or insert some bytes of it."""
    end = len(data) if end is None else end
    if begin >= end:
        return data
    place = draw.randrange(begin, end)
    length = min(draw.choice((1, 2, 8, 60, 1000)), end - place)
    here, rest = data[place : place + length], data[place + length :]
    match draw.randrange(6):
        case 0 | 1:
            here = bytes([here[0] ^ 1 << draw.randrange(8)]) + here[1:]
        case 2:
            here = draw.randbytes(length)
        case 3:
            here = b""
        case 4:
            here *= 2
        case _:
            here = draw.choice((b"\0", b"\n", b"}\n{", b'"', b"\xff", b"[" * 2000)) + here
    return data[:place] + here + rest


def damaged_json(draw: random.Random, value: dict[str, Any]) -> str:
    """Return the text of a JSON object in which something is odd; the value stays as it is."""
    container: Any = value
    key: Any = draw.choice(list(container))
    # Half of the time one step deeper.
    while draw.random() < 0.7 and isinstance(container[key], (dict, list)) and container[key]:
        container = container[key]
        inside = list(container) if isinstance(container, dict) else range(len(container))
        key = draw.choice(inside)
    return _with_oddity(draw, value, container, key)


def _with_oddity(draw: random.Random, value: object, container: Any, key: Any) -> str:  # noqa: ANN401 - any JSON
    if draw.random() < 0.15:
        return json.dumps(_without(draw, value, container, key), separators=(",", ":"))
    before, container[key] = container[key], _PLACEHOLDER
    text = json.dumps(value, separators=(",", ":"))
    container[key] = before
    return text.replace(json.dumps(_PLACEHOLDER), draw.choice(ODD_JSON), 1)


def _without(draw: random.Random, value: object, container: Any, key: Any) -> Any:  # noqa: ANN401 - any JSON
    """Return a copy in which an entry is missing, or is there under another name or twice."""
    before = dict(container) if isinstance(container, dict) else list(container)
    entry = container.pop(key)
    if isinstance(container, list):
        container[:0] = draw.choice(([], [entry, entry], [entry]))
    elif draw.random() < 0.5:
        container[draw.choice(("", "name", "\u001b[31m", f"{key} "))] = entry
    changed = json.loads(json.dumps(value))
    container.clear()
    if isinstance(container, dict):
        container.update(before)
    else:
        container.extend(before)
    return changed


def odd_sequence(draw: random.Random, items: Sequence[bytes]) -> list[bytes]:
    """Return the items with one removed, doubled or out of its place, or some of them missing."""
    found = list(items)
    place = draw.randrange(len(found))
    match draw.randrange(5):
        case 0:
            del found[place]
        case 1:
            found.insert(draw.randrange(len(found)), found[place])
        case 2:
            found.insert(draw.randrange(len(found)), found.pop(place))
        case 3:
            del found[place:]
        case _:
            found = [item for item in found if draw.random() < 0.8]
    return found
