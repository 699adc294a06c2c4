# SPDX-License-Identifier: GPL-2.0-only
"""The terminal output of a lab run."""

from __future__ import annotations

import sys
import textwrap
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Final, TextIO

from soak.files.printable import printable
from soak.ledger.schema import NO_KNOWN_ISSUE
from soak.ledger.worker_view import outcome_and_errno
from soak.model.vocabulary import Level, Operation, Outcome, Violation
from soak.process.output import put

if TYPE_CHECKING:
    from soak.ledger.view import LedgerView

_PLAIN_SECONDS: Final = 10.0
# textwrap takes quadratic time, and a guest may send text of any length.
_LONGEST: Final = 2000
_WIDTH: Final = 79
_TWO: Final = 2  # looks make an interval
_WHOLE_RATE: Final = 10


class Progress:
    """Prints messages, and a status line: overwritten on a terminal, else printed every ten seconds."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._live = self._out.isatty()
        self._shown = False
        self._last = 0.0
        # Times and cycle counts of the last ten seconds.
        self._cycles: deque[tuple[float, int]] = deque()

    def say(self, sentence: str) -> None:
        """Print a message, in lines of less than 80 columns."""
        self._erase()
        for line in printable(sentence[:_LONGEST]).split("\n"):
            filled = textwrap.fill(
                line, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
            )
            put(f"{filled}\n", self._out)

    def tick(self, text: str) -> None:
        """Show a status line."""
        if self._live:
            self._erase()
            put(text[:_WIDTH], self._out)
            self._shown = True
        elif time.monotonic() - self._last >= _PLAIN_SECONDS:
            self._last = time.monotonic()
            put(f"{text}\n", self._out)

    def ledger_line(self, ledger: LedgerView, duration: float) -> str:
        """Describe a ledger in less than 80 columns; `duration` is how long it soaks, in seconds."""
        ended: Counter[Outcome] = Counter()
        cycles = 0
        for cell, row in ledger.counts.items():
            for column, count in row.items():
                ended[outcome_and_errno(column)[0]] += count
            if cell.operation is Operation.UNMAP:
                cycles += row[Outcome.DONE]
        found = ledger.violations
        unexplained = sum(row[NO_KNOWN_ISSUE] for row in found.values())
        leaked = sum(found[Violation.LEAK].values())
        rate = self._rate(cycles, ledger.soaked_seconds)
        return (
            f"{_clock(ledger.soaked_seconds)}/{_clock(duration)}  {_short(ended.total())} ops  "
            f"{rate} cycles/s  {_short(ended[Outcome.REFUSED])} refused  {_short(leaked)} leaked  "
            f"{unexplained} unexplained"
        )

    def _rate(self, cycles: int, elapsed: float) -> str:
        """Return the cycles per second over the last ten seconds, or over a shorter soak.

        Without a terminal, which has a line every ten seconds, that is the interval between two lines.
        """
        now = time.monotonic()
        self._cycles.append((now, cycles))
        while now - self._cycles[0][0] > _PLAIN_SECONDS and len(self._cycles) > _TWO:
            self._cycles.popleft()
        began, before = self._cycles[0]
        seconds = now - began
        if seconds < 1.0:
            seconds, before = elapsed or 1.0, 0
        rate = (cycles - before) / seconds
        return f"{rate:.0f}" if rate >= _WHOLE_RATE else f"{rate:.1f}"

    def _erase(self) -> None:
        if self._shown:
            put(f"\r{' ' * _WIDTH}\r", self._out)
            self._shown = False


class EventLines:
    """Prints journal events above level info; each known issue once."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._shown: set[str] = set()

    def show(self, line: dict[str, Any]) -> None:
        # A guest may send this field with any type in an event that does not declare it.
        issue = str(line.get("known_issue") or "")
        if line["level"] == Level.INFO or issue in self._shown:
            return
        if issue:
            self._shown.add(issue)
        self._progress.say(f"{line['level']}: {line.get('summary', line['event'])}")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def _short(number: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= 10 * size:
            return f"{number / size:.0f}{unit}"
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)
