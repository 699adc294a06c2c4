# SPDX-License-Identifier: GPL-2.0-only
"""Text of others, for a terminal."""

from __future__ import annotations

from typing import Final

_SHOWN: Final = 60


def printable(text: str) -> str:
    """Return a text with every control character but the end of a line written as an escape.

    A terminal obeys some of them, and a guest or a damaged file may have sent them.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character == "\n" else _escaped(character)
        for character in text
    )


def shown(value: object) -> str:
    """Return how a value looks in Python, in one printable line of about 60 characters."""
    try:
        text = repr(value)
    except ValueError:
        # Python writes no decimal number of more than 4,300 digits, and reads hexadecimal ones.
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _escaped(character: str) -> str:
    return " " if character == "\t" else ascii(character)[1:-1]
