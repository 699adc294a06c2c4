# SPDX-License-Identifier: GPL-2.0-only
"""References that are made from the code: `make readme` writes them into the pages that have a place.

A key of the configuration stands in soak.config.sections with its meaning and its default, a metric in
exporter.catalogue, and nowhere else.
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
    "| `[known-issues] NAME` | `false` turns a known issue off: what it explains then fails the run "
    "| true |"
)


def metrics_table() -> str:
    """Return every metric as a table in Markdown."""
    rows = ["| metric | type | unit | labels | means |", "| --- | --- | --- | --- | --- |"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(
            f"| `{metric.full_name}` | {metric.type} | {metric.unit} | {labels} | {metric.help} |"
        )
    return "\n".join(rows)


def configuration_table() -> str:
    """Return every key of a configuration as a table in Markdown."""
    rows = ["| key | means | default |", "| --- | --- | --- |"]
    for name, section in SECTIONS.items():
        rows += _rows(f"[{name}]", section)
    rows += _rows("[[region]]", RegionSection)
    return "\n".join([*rows, _KNOWN_ISSUES])


# What is made, by the line that begins its place.
TABLES: Final[dict[str, Callable[[], str]]] = {
    "<!-- configuration, made by 'make readme' -->": configuration_table,
    "<!-- metrics, made by 'make readme' -->": metrics_table,
}


def with_tables(text: str) -> str:
    """Return a text with each table in the place that is marked for it, if there is one."""
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
    """Show a default as a configuration has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value in {"", ()} else str(value)


if __name__ == "__main__":
    for _path in map(Path, sys.argv[1:]):
        _path.write_text(with_tables(_path.read_text()))
