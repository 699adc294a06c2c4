# SPDX-License-Identifier: GPL-2.0-only
"""Types of command-line arguments: one parser each, for argparse to call.

Every parser except `kernel_words` refuses an empty argument: a script with an unset variable must not
silently get the default.
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
# The kernel's COMMAND_LINE_SIZE is 2 KiB, of which the lab needs a part.
_LONGEST_APPEND: Final = 1024


def place(text: str) -> str:
    """Return the path of a file or directory, or a name that stands for one.

    Raises:
        ArgumentTypeError: it is empty, too long, or contains a control character.
    """
    _refuse_empty(text)
    if _CONTROL.search(text):
        raise ArgumentTypeError(f"{_shown(text)} has a control character, expected a path without any")
    longest = max(len(_bytes(name)) for name in text.split("/"))
    if longest > _LONGEST_NAME:
        raise ArgumentTypeError(
            f"{_shown(text)} has a name of {longest} bytes, expected at most {_LONGEST_NAME}"
        )
    if len(_bytes(text)) > _LONGEST_PATH:
        raise ArgumentTypeError(
            f"{_shown(text)} has {len(_bytes(text))} bytes, expected a path of at most {_LONGEST_PATH}"
        )
    return text


def path(text: str) -> Path:
    """Return a path, which need not exist.

    Raises:
        ArgumentTypeError: see `place`.
    """
    return Path(place(text))


def word(text: str) -> str:
    """Return a name, for the caller to look up.

    Raises:
        ArgumentTypeError: it is empty or too long.
    """
    _refuse_empty(text)
    if len(text) > _LONGEST_NAME:
        raise ArgumentTypeError(
            f"{_shown(text)} has {len(text)} characters, expected a name of at most {_LONGEST_NAME}"
        )
    return text


def kernel_words(text: str) -> str:
    """Return parameters for the kernel command line; may be empty.

    Raises:
        ArgumentTypeError: it contains a control character, or the kernel would truncate it.
    """
    if _CONTROL.search(text):
        raise ArgumentTypeError(f"{_shown(text)} has a control character, expected a line without any")
    if len(_bytes(text)) > _LONGEST_APPEND:
        raise ArgumentTypeError(
            f"{_shown(text)} has {len(_bytes(text))} bytes, expected at most {_LONGEST_APPEND}"
        )
    return text


def address(text: str) -> str:
    """Return the text after checking that it is HOST:PORT.

    Raises:
        ArgumentTypeError: it is not.
    """
    _read(read_listen, text)
    return text


def duration(text: str) -> float:
    """Return a duration in seconds.

    Raises:
        ArgumentTypeError: it is not a duration.
    """
    return _read(parse_duration, text)


def seed(text: str) -> int:
    """Return a seed.

    Raises:
        ArgumentTypeError: it is not a whole number, or too large.
    """
    return _read(lambda one: parse_seed(int(one) if _DIGITS.fullmatch(one) else one), text)


def count(text: str) -> int:
    """Return a positive count of choices to print.

    Raises:
        ArgumentTypeError: it is not a whole number from 1 to a billion.
    """
    number = int(text) if _DIGITS.fullmatch(text) else 0
    if not 0 < number <= _MOST_CHOICES:
        raise ArgumentTypeError(f"{_shown(text)} is not a whole number from 1 to {_MOST_CHOICES}")
    return number


def _read(parse: Callable[[str], _T], text: str) -> _T:
    """Parse an argument with a parser of the configuration."""
    try:
        return parse(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{_shown(text)} is not {error}") from None


def _refuse_empty(text: str) -> None:
    if not text:
        raise ArgumentTypeError("it is empty: give a value or omit the option")


def _bytes(text: str) -> bytes:
    # Arguments need not be UTF-8.
    return text.encode(errors="surrogateescape")


def _shown(text: str) -> str:
    """Quote an argument, truncated so that the message stays one line."""
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}..."
