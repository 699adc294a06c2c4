# SPDX-License-Identifier: GPL-2.0-only
"""Parse untrusted JSON, with a bound on nesting depth."""

from __future__ import annotations

import json
from typing import Any, Final

# More than twice the depth of anything that this program writes.
DEEPEST: Final = 32


def parse_json(text: bytes | str) -> Any:  # noqa: ANN401 - any JSON value
    """Parse JSON; recursive functions (`repr`, `json.dumps`, `==`) can process the result.

    Raises:
        ValueError: the text is not JSON, or nests deeper than `DEEPEST`.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it nests too deeply") from None
    if _openings(text) > DEEPEST and _nests_too_deeply(value):
        raise ValueError("it nests too deeply")
    return value


def _openings(text: bytes | str) -> int:
    """Count opening brackets and braces: an upper bound on the depth."""
    if isinstance(text, bytes):
        return text.count(b"[") + text.count(b"{")
    return text.count("[") + text.count("{")


def _nests_too_deeply(value: object) -> bool:
    level: list[Any] = [value] if isinstance(value, (dict, list)) else []
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
    return bool(level)
