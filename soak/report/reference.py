# SPDX-License-Identifier: GPL-2.0-only
"""The configuration reference of the README, made from the code: `make readme` writes it.

Each key stands in soak.config.sections with its meaning and its default, and nowhere else.
"""

from __future__ import annotations

import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from soak.config.sections import SECTIONS, RegionSection

if TYPE_CHECKING:
    from collections.abc import Iterator

BEGIN: Final = "<!-- made by 'make readme' -->"
END: Final = "<!-- to here -->"
_KNOWN_ISSUES: Final = (
    "| `[known-issues] NAME` | `false` turns a known issue off: what it explains then fails the run "
    "| true |"
)


def configuration_table() -> str:
    """Return every key of a configuration as a table in Markdown."""
    rows = ["| key | means | default |", "| --- | --- | --- |"]
    for name, section in SECTIONS.items():
        rows += _rows(f"[{name}]", section)
    rows += _rows("[[region]]", RegionSection)
    return "\n".join([*rows, _KNOWN_ISSUES])


def with_table(text: str) -> str:
    """Return a text with the table in the place that is marked for it.

    Raises:
        ValueError: no place is.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the text has no place between {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n{configuration_table()}\n{END}{after}"


def _rows(place: str, section: type[Any]) -> Iterator[str]:
    for item in fields(section):
        key = item.name.replace("_", "-")
        default = "" if item.default is MISSING else _shown(item.default)
        yield f"| `{place} {key}` | {item.metadata['meaning']} | {default} |"


def _shown(value: object) -> str:
    """Show a default as a configuration has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value in {"", ()} else str(value)


if __name__ == "__main__":
    for _path in map(Path, sys.argv[1:]):
        _path.write_text(with_table(_path.read_text()))
