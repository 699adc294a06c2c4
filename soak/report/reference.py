# SPDX-License-Identifier: GPL-2.0-only
"""Reference tables, generated from the code: `make readme` writes them into the marked pages.

soak.config.sections declares every configuration key, exporter.catalogue every metric.
"""

from __future__ import annotations

import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from exporter.catalogue import METRICS
from soak.config.sections import SECTIONS, RegionSection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

END: Final = "<!-- to here -->"
_KNOWN_ISSUES: Final = (
    "| `[known-issues] NAME` | `false` disables a known issue: violations that it explains fail the run "
    "| true |"
)


def metrics_table() -> str:
    """Return all metrics as a Markdown table."""
    rows = ["| metric | type | unit | labels | means |", "| --- | --- | --- | --- | --- |"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(
            f"| `{metric.full_name}` | {metric.type} | {metric.unit} | {labels} | {metric.help} |"
        )
    return "\n".join(rows)


def configuration_table() -> str:
    """Return all configuration keys as a Markdown table."""
    rows = ["| key | means | default |", "| --- | --- | --- |"]
    for name, section in SECTIONS.items():
        rows += _rows(f"[{name}]", section)
    rows += _rows("[[region]]", RegionSection)
    return "\n".join([*rows, _KNOWN_ISSUES])


# The generator of each table, by the marker that precedes the table.
TABLES: Final[dict[str, Callable[[], str]]] = {
    "<!-- configuration, made by 'make readme' -->": configuration_table,
    "<!-- metrics, made by 'make readme' -->": metrics_table,
}


def with_tables(text: str) -> str:
    """Return the text with a new table behind each marker."""
    for begin, table in TABLES.items():
        before, found, rest = text.partition(begin)
        if found:
            _, end, after = rest.partition(END)
            text = f"{before}{begin}\n{table()}\n{end}{after}"
    return text


def _rows(place: str, section: type[Any]) -> Iterator[str]:
    for item in fields(section):
        key = item.name.replace("_", "-")
        default = "" if item.default is MISSING else _shown(item.default)
        yield f"| `{place} {key}` | {item.metadata['meaning']} | {default} |"


def _shown(value: object) -> str:
    """Format a default as in a configuration file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value in {"", ()} else str(value)


if __name__ == "__main__":
    for _path in map(Path, sys.argv[1:]):
        _path.write_text(with_tables(_path.read_text()))
