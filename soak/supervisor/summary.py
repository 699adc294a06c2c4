# SPDX-License-Identifier: GPL-2.0-only
"""The daily summary: the counts of a run since the last summary and in total, as one journal line."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from soak.ledger.schema import COUNT_COLUMNS, STALL_COLUMNS, leaks_field

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from soak.journal.writer import Journal
    from soak.ledger.writer import BlockWriter

_Path = tuple[str, ...]
# Written even if 0; other counts of 0 are omitted.
_ALWAYS: Final[tuple[_Path, ...]] = (("stalls",), ("restarts",))
_LEAKED: Final = "leaked_total "


class Summary:
    """Adds up the blocks of the supervisor and of all workers, and keeps the last totals."""

    def __init__(self, block: BlockWriter, journal: Journal, workers: Sequence[BlockWriter]) -> None:
        self._block = block
        self._journal = journal
        self._workers = workers
        # Counts of an earlier supervisor of this run are not new.
        self._last = Counter(dict(self._count()))
        self._last_ns = block.get("soaked_ns")

    def write(self) -> None:
        """Write `summary.written`: differences to the last summary in `since`, totals in `total`."""
        now_ns, total = self._block.get("soaked_ns"), Counter(dict(self._count()))
        since = Counter({path: count - self._last[path] for path, count in total.items()})
        self._journal.write(
            "summary.written",
            # Soaked time, without pauses.
            seconds={"since": round((now_ns - self._last_ns) / 1e9), "total": round(now_ns / 1e9)},
            since=_nested(since),
            total=_nested(total),
        )
        self._last, self._last_ns = total, now_ns

    def _count(self) -> Iterator[tuple[_Path, int]]:
        yield from self._operations()
        block = self._block
        for kind, issue, count in _table(block, "violations"):
            yield ("violations", kind, issue), count
        waits = block.view("waits")
        yield ("stalls",), sum(waits[STALL_COLUMNS.index("stalls") :: len(STALL_COLUMNS)])
        yield ("restarts",), sum(block.view("restarts"))
        yield from self._pages()
        for detector, column, count in _table(block, "canaries"):
            if column in {"seen", "missed"}:
                yield ("canaries", detector, column), count

    def _operations(self) -> Iterator[tuple[_Path, int]]:
        outcomes: Counter[str] = Counter()
        for worker in self._workers:
            words, width = worker.view("counts"), len(COUNT_COLUMNS)
            for position, column in enumerate(COUNT_COLUMNS):
                outcomes[column.partition(" ")[0]] += sum(words[position::width])
        for outcome, count in outcomes.items():
            yield ("operations", outcome), count

    def _pages(self) -> Iterator[tuple[_Path, int]]:
        block = self._block
        for region, sweeps in zip(block.names("sweeps"), block.view("sweeps"), strict=True):
            yield ("sweeps", region), sweeps
            field = leaks_field(region)
            for name, count in zip(block.names(field), block.view(field), strict=True):
                if name.startswith(_LEAKED):
                    yield ("leaked", region, name.removeprefix(_LEAKED)), count


def _table(block: BlockWriter, name: str) -> Iterator[tuple[str, str, int]]:
    """Yield row, column and value of a field with two axes."""
    rows, columns = block.block.fields[name].axes
    if isinstance(rows, int) or isinstance(columns, int):
        raise TypeError(f"{name} has an axis without names")
    words = iter(block.view(name))
    for row in rows:
        for column in columns:
            yield row, column, next(words)


def _nested(counts: Counter[_Path]) -> dict[str, Any]:
    """Turn paths into nested tables."""
    tables: dict[str, Any] = {}
    for path, count in counts.items():
        if count or path in _ALWAYS:
            place = tables
            for name in path[:-1]:
                place = place.setdefault(name, {})
            place[path[-1]] = count
    return tables
