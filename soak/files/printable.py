# SPDX-License-Identifier: GPL-2.0-only
"""Escape untrusted text for a terminal."""

from __future__ import annotations

from typing import Final

_SHOWN: Final = 60


def printable(text: str) -> str:
    """Escape every control character except newline.

    Text of a guest or a damaged file may contain terminal control sequences.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character == "\n" else _escaped(character)
        for character in text
    )


def shown(value: object) -> str:
    """Return `repr(value)`, truncated to about 60 characters."""
    try:
        text = repr(value)
    except ValueError:
        # Python refuses to format integers of more than 4,300 digits (sys.set_int_max_str_digits).
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _escaped(character: str) -> str:
    return " " if character == "\t" else ascii(character)[1:-1]
