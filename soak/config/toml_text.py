# SPDX-License-Identifier: GPL-2.0-only
"""TOML that others wrote: parsed within bounds.

The parser takes a level of recursion for each bracket, and for a dotted key time that grows with the
square of its parts, so both are counted before it sees the text.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any, Final

# Nothing that a configuration may say nests half as deeply.
DEEPEST: Final = 16

# What stands between two tokens of interest is skipped whole: comments and strings, in which a bracket
# means nothing. A string without an end reaches to the end of the text, which is an error there anyway.
_TOKEN: Final = re.compile(
    r"""
      \#[^\n]*+
    | \"{3} (?: \\. | \"(?!\"\") | [^"\\] )*+ (?: \"{3} | \Z )
    | '{3} (?: '(?!'') | [^'] )*+ (?: '{3} | \Z )
    | \" (?: \\. | [^"\\\n] )*+ \"?
    | ' [^'\n]*+ '?
    | (?P<mark> [\[\]{}.=,\n] )
    """,
    re.VERBOSE | re.DOTALL,
)


def parse_toml(text: str) -> dict[str, Any]:
    """Return the table that a text describes.

    Raises:
        ValueError: it is no TOML, or nests too deeply; the message says what and where.
    """
    _check_depth(text)
    return tomllib.loads(text)


def _check_depth(text: str) -> None:
    brackets = parts = 0
    for token in _TOKEN.finditer(text):
        match token["mark"]:
            case "[" | "{":
                brackets += 1
                parts = 0
            case "]" | "}":
                brackets = max(brackets - 1, 0)
                parts = 0
            case ".":
                parts += 1
            case "=" | "," | "\n":
                parts = 0
            case _:
                continue
        if brackets + parts > DEEPEST:
            line = text.count("\n", 0, token.start()) + 1
            raise ValueError(f"it nests more than {DEEPEST} deep (at line {line})")
