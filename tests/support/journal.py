# SPDX-License-Identifier: GPL-2.0-only
"""Lines of a journal for tests: every event that is declared, with all that it must have."""

from __future__ import annotations

from typing import Any, Final

from soak.journal.events import EVENTS
from soak.model.vocabulary import Level

BOOT: Final = "11111111-1111-1111-1111-111111111111"
# One is what each check holds for that comes first.
_VALUES: Final[tuple[Any, ...]] = ("text", 0, False, [], {}, *("pass", "leak", "confirmed", "info"))
_GIVEN_UP: Final = {str(level): 0 for level in Level}


def valid_fields(event: str, **fields: object) -> dict[str, Any]:
    """Return the fields of an event: those given, and one of its levels and more where it needs them."""
    declared = EVENTS[event]
    values = (*_VALUES, _GIVEN_UP)
    return {
        "level": str(min(declared.levels, key=list(Level).index)),
        **{
            name: next(value for value in values if check.holds(value))
            for name, check in declared.fields.items()
        },
        **fields,
    }


def valid_line(seq: int, event: str, **fields: object) -> dict[str, Any]:
    """Return a line that the judge understands, but for the `fields` given."""
    return {
        "seq": seq,
        "time": f"2026-01-01T00:00:{seq % 60:02}.000Z",
        "monotonic": float(seq),
        "boot_id": BOOT,
        "event": event,
        **valid_fields(event, **fields),
    }
