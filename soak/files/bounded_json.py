# SPDX-License-Identifier: GPL-2.0-only
"""JSON that others wrote: parsed, and refused where it nests so deeply that using it could fail."""

from __future__ import annotations

import json
from typing import Any, Final

# Nothing that this program writes nests half as deeply.
DEEPEST: Final = 32


def parse_json(text: bytes | str) -> Any:  # noqa: ANN401 - any JSON value
    """Return the value of a JSON text.

    Whatever goes through a value by recursion (`repr`, `json.dumps`, `==`) can do so with this one.

    Raises:
        ValueError: it is no JSON, or nests too deeply.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it nests too deeply") from None
    if _openings(text) > DEEPEST and _nests_too_deeply(value):
        raise ValueError("it nests too deeply")
    return value


def _openings(text: bytes | str) -> int:
    """Count what begins an array or object: no value nests more deeply than that."""
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
