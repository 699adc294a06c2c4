# SPDX-License-Identifier: GPL-2.0-only
"""What the words of the command line may be: one parser for each kind, for argparse to call.

A mistake becomes one sentence. An empty word is one: a script that has not set a variable must not get
the default.
"""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from soak.config.listen import read_listen
from soak.config.values import parse_duration, parse_seed

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")

_SHOWN: Final = 60
# Linux's NAME_MAX, and its PATH_MAX without the byte at the end.
_LONGEST_NAME: Final = 255
_LONGEST_PATH: Final = 4095
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_DIGITS: Final = re.compile(r"[0-9]{1,19}")
_MOST_CHOICES: Final = 10**9
# A kernel takes 2 KiB, of which the lab needs some itself.
_LONGEST_APPEND: Final = 1024


def place(text: str) -> str:
    """Return what may be the path of a file or directory, or a name that stands for one.

    Raises:
        ArgumentTypeError: no file can be called that, or no sentence could show it.
    """
    _refuse_empty(text)
    if _CONTROL.search(text):
        raise ArgumentTypeError(f"{_shown(text)} has a control character: give a name without")
    longest = max(len(_bytes(name)) for name in text.split("/"))
    if longest > _LONGEST_NAME:
        raise ArgumentTypeError(
            f"{_shown(text)} has a name of {longest} bytes: a file's has at most {_LONGEST_NAME}"
        )
    if len(_bytes(text)) > _LONGEST_PATH:
        raise ArgumentTypeError(
            f"{_shown(text)} has {len(_bytes(text))} bytes: a path has at most {_LONGEST_PATH}"
        )
    return text


def path(text: str) -> Path:
    """Return a path, which need not be there.

    Raises:
        ArgumentTypeError: there cannot be such a file.
    """
    return Path(place(text))


def word(text: str) -> str:
    """Return a name that is looked up somewhere else.

    Raises:
        ArgumentTypeError: it is empty, or too long for any.
    """
    _refuse_empty(text)
    if len(text) > _LONGEST_NAME:
        raise ArgumentTypeError(f"{_shown(text)} is longer than any name that is known here")
    return text


def kernel_words(text: str) -> str:
    """Return more of a kernel's command line, which may be nothing.

    Raises:
        ArgumentTypeError: a kernel would read something else, or only its beginning.
    """
    if _CONTROL.search(text):
        raise ArgumentTypeError(f"{_shown(text)} has a control character: give one line of words")
    if len(_bytes(text)) > _LONGEST_APPEND:
        raise ArgumentTypeError(
            f"{_shown(text)} has {len(_bytes(text))} bytes: there is room for {_LONGEST_APPEND}"
        )
    return text


def address(text: str) -> str:
    """Return HOST:PORT.

    Raises:
        ArgumentTypeError: it is not.
    """
    _read(read_listen, text)
    return text


def duration(text: str) -> float:
    """Return seconds.

    Raises:
        ArgumentTypeError: it is no duration.
    """
    return _read(parse_duration, text)


def seed(text: str) -> int:
    """Return a seed.

    Raises:
        ArgumentTypeError: it is no whole number, or too large.
    """
    return _read(lambda one: parse_seed(int(one) if _DIGITS.fullmatch(one) else one), text)


def count(text: str) -> int:
    """Return how many to print.

    Raises:
        ArgumentTypeError: it is no whole number, less than one or absurd.
    """
    number = int(text) if _DIGITS.fullmatch(text) else 0
    if not 0 < number <= _MOST_CHOICES:
        raise ArgumentTypeError(f"{_shown(text)} is not a whole number from 1 to {_MOST_CHOICES}")
    return number


def _read(parse: Callable[[str], _T], text: str) -> _T:
    """Have a parser of the configuration read a word."""
    try:
        return parse(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{_shown(text)} is not {error}") from None


def _refuse_empty(text: str) -> None:
    if not text:
        raise ArgumentTypeError("it is empty: give a value, or leave it out")


def _bytes(text: str) -> bytes:
    # Of a word that is no UTF-8, too.
    return text.encode(errors="surrogateescape")


def _shown(text: str) -> str:
    """Return the word in quotes, or its beginning: a sentence has to stay one."""
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}..."
