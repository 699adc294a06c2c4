# SPDX-License-Identifier: GPL-2.0-only
"""Parse untrusted TOML, with a bound on nesting depth.

tomllib recurses once per bracket, and needs quadratic time for a dotted key, so this module counts both
before it calls the parser.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any, Final

# More than twice the depth of any valid configuration.
DEEPEST: Final = 16

# Comments and strings match as a whole, because brackets inside them do not nest. An unterminated string
# extends to the end of the text, where tomllib reports it.
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
    """Parse TOML.

    Raises:
        ValueError: the text is not TOML, or nests too deeply; the message gives error and line.
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
