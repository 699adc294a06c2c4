"""Text of others, for a terminal."""

from __future__ import annotations


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


def _escaped(character: str) -> str:
    return " " if character == "\t" else ascii(character)[1:-1]
