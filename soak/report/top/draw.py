# SPDX-License-Identifier: GPL-2.0-only
"""Draws a live view in 80 columns, the most important parts first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from soak.files.printable import printable
from soak.ledger.view import NANOSECONDS
from soak.model.vocabulary import VerdictWord, WorkerState

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from soak.report.top.view import View

_VERDICT_STYLES: Final = {
    VerdictWord.PASS: "bold green",
    VerdictWord.FAIL: "bold red",
    VerdictWord.UNKNOWN: "bold yellow",
}
_BAD: Final = "bold red"
_KNOWN: Final = "yellow"
_DIM: Final = "dim"
_HEADING: Final = "bold"
# From these values on, numbers have no decimals.
_WHOLE_TIMES: Final = 10
_WHOLE_RATES: Final = 100
# Limits the time for wrapping: verdict.json may hold texts of any length.
_LONGEST_REASON: Final = 2000
_TIME_UNITS: Final = ((1e9, "s"), (1e6, "ms"), (1e3, "us"), (1.0, "ns"))


@dataclass(frozen=True)
class Conclusion:
    """The verdict and reasons from verdict.json."""

    verdict: VerdictWord
    reasons: tuple[str, ...]


class Cropped:
    """Crops content to the height of the terminal; the last line has the number of hidden lines."""

    def __init__(self, content: RenderableType) -> None:
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = console.size.height
        lines = console.render_lines(self._content, options.update(height=None), pad=False)
        hidden = len(lines) - height
        if hidden > 0:
            hidden += 1
            text = Text(f"... {hidden} more lines: enlarge the window (q quits)", _DIM)
            lines = [*lines[: height - 1], *console.render_lines(text, options, pad=False)[:1]]
        for number, line in enumerate(lines):
            if number:
                yield Segment.line()
            yield from line


class Printable:
    """Escapes control characters in content, which a guest may have written."""

    def __init__(self, content: RenderableType) -> None:
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self._content, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def draw(view: View, conclusion: Conclusion | None) -> RenderableType:
    """Draw a view of a run, with its conclusion once it has ended."""
    parts: list[RenderableType] = [
        *_head(view, conclusion),
        *_section("violations", _violations(view)),
        *_section("page references", _leaks(view)),
        *_section(None, _waiting(view)),
        *_section("refused and failed", _refusals(view)),
        *_section(None, _workers(view)),
        *_section(None, _operations(view)),
    ]
    return Printable(Group(*parts))


def _head(view: View, conclusion: Conclusion | None) -> Iterator[RenderableType]:
    run = view.run
    word = conclusion.verdict if conclusion else view.verdict
    yield Text.assemble(
        ("dax-soak ", _HEADING),
        str(run.get("run_id", "")),
        f"  {view.state}  ",
        "verdict " if conclusion else "verdict so far ",
        (word.upper(), _VERDICT_STYLES[word]),
    )
    for reason in conclusion.reasons if conclusion else ():
        yield Padding(Text(reason[:_LONGEST_REASON]), (0, 0, 0, 2))
    about = (
        f"Linux {view.kernel}" if view.kernel else "no kernel yet",
        str(run.get("filesystem") or ""),
        view.accelerator,
        str(run.get("scenario") or ""),
        f"seed {run.get('seed')}",
    )
    yield Text("  ".join(filter(None, about)))
    done, needed = view.covered
    times = f"{_clock(view.elapsed)} elapsed"
    if view.to_go is not None:
        times += f", {_clock(view.to_go)} to go"
    span = "since the start" if view.span is None else f"of the last {view.span:.0f} s"
    yield Text(f"{times}  {done} of {needed} cells covered  rates {span}")
    if view.no_heartbeat:
        yield Text("No heartbeat from the supervisor yet.", _KNOWN)
    if view.silent is not None:
        yield Text(f"No supervisor heartbeat for {_clock(view.silent)}: the soak hangs or is dead.", _BAD)


def _section(title: str | None, content: RenderableType | None) -> Iterator[RenderableType]:
    if content is not None:
        yield Text("")
        if title is not None:
            yield Text(title, _HEADING)
        yield content


def _table(*columns: tuple[str, bool], room: Sequence[int] = ()) -> Table:
    """Make a table from columns of a heading and whether they hold numbers.

    `room` has the minimum widths, which keep columns in place while their contents change.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style=_HEADING)
    for (heading, number), width in zip(columns, room or [0] * len(columns), strict=True):
        # Fold, never crop: a number without some of its digits would mislead.
        table.add_column(heading, justify="right" if number else "left", overflow="fold", min_width=width)
    return table


def _violations(view: View) -> RenderableType:
    if not view.violations:
        return Text("  none")
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for _ in range(3):
        table.add_column(overflow="fold")
    for line in view.violations:
        style = _KNOWN if line.known_issue else _BAD
        issue = f"known: {line.known_issue}" if line.known_issue else "UNEXPLAINED"
        table.add_row(f"  {line.kind}", f"{line.count:,}", Text(issue, style))
    return table


def _leaks(view: View) -> RenderableType:
    table = _table(
        ("  region", False),
        ("found", True),
        ("predicted", True),
        ("unexplained", True),
        ("headroom", True),
        ("swept", True),
    )
    table.padding = (0, 2, 0, 0)
    for region in view.regions:
        swept = "never"
        if region.swept is not None:
            swept = f"{_clock(region.swept)} ago"
        elif not region.found:
            continue  # never swept: its reference counts are not readable, or not yet read
        table.add_row(
            f"  {region.name}",
            _count(region.found),
            _count(region.predicted),
            Text(_count(region.unexplained), _BAD if region.unexplained != 0 else ""),
            f"{region.headroom:.1%}",
            swept,
        )
    return table if table.row_count else Text("  not swept yet")


def _count(number: int | None) -> str:
    return "torn" if number is None else f"{number:,}"


def _waiting(view: View) -> RenderableType | None:
    """Draw the stalls, and beside them the delays of wake-ups."""
    stalls = _table(("stalls", False), ("ever", True), ("now", True), ("seconds", True))
    stalls.show_footer = len(view.stalls) > 1
    for line in view.stalls:
        now = Text(str(line.stalled), _BAD if line.stalled else "")
        stalls.add_row(f"  {line.operation}", f"{line.stalls:,}", now, f"{line.seconds:,.1f}")
    totals = (
        "  all",
        f"{sum(line.stalls for line in view.stalls):,}",
        str(sum(line.stalled for line in view.stalls)),
        f"{sum(line.seconds for line in view.stalls):,.1f}",
    )
    for column, total in zip(stalls.columns, totals, strict=True):
        column.footer = total
    if not view.stalls:
        stalls.add_row("  none", "0", "0", "0.0")
    wakeups = _table(("wake-up delays", False), ("waits", True), ("p50", True), ("p99", True))
    for delay in view.wakeups:
        wakeups.add_row(
            f"  {delay.interface}", f"{delay.count:,}", _time(delay.p50_ns), _time(delay.p99_ns)
        )
    if not view.wakeups:
        wakeups.add_row("  none", "0", "-", "-")
    grid = Table.grid(padding=(0, 4, 0, 0))
    grid.add_row(stalls, wakeups)
    return grid


def _refusals(view: View) -> RenderableType:
    if not view.refusals:
        return Text("  none")
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number in (False, False, False, False, True, True, False):
        table.add_column(justify="right" if number else "left", overflow="fold")
    for line in view.refusals:
        table.add_row(
            f"  {line.cell.operation}",
            line.cell.region,
            line.cell.interface,
            line.errno,
            f"{line.total:,}",
            f"{_rate(line.rate)}/s",
            Text("expected") if line.expected else Text("UNEXPECTED", _BAD),
        )
    return table


def _workers(view: View) -> RenderableType:
    table = _table(
        ("worker", False),
        ("state", False),
        ("in flight", False),
        ("for", True),
        ("ops/s", True),
        ("restarts", True),
        ("wedged", True),
        room=(10, 8, 20, 6, 6, 8, 6),
    )
    for line in view.workers:
        table.add_row(
            line.name,
            Text(line.state, _BAD if line.state == WorkerState.DEAD else ""),
            line.doing or "-",
            "-" if line.seconds is None else _time(line.seconds * NANOSECONDS),
            _rate(line.rate),
            Text(str(line.restarts), _KNOWN if line.restarts else ""),
            Text(str(line.wedged), _BAD if line.wedged else ""),
        )
    return table


def _operations(view: View) -> RenderableType:
    table = _table(
        ("operation", False),
        ("region", False),
        ("interface", False),
        ("total", True),
        ("ops/s", True),
        ("p50", True),
        ("p99", True),
        room=(15, 10, 10, 13, 7, 6, 6),
    )
    for line in view.operations:
        table.add_row(
            f"  {line.cell.operation}",
            line.cell.region,
            line.cell.interface,
            f"{line.total:,}",
            _rate(line.rate),
            _time(line.p50_ns),
            _time(line.p99_ns),
        )
    return table


def _rate(rate: float | None) -> str:
    if rate is None:
        return "-"
    return f"{rate:,.0f}" if rate >= _WHOLE_RATES or rate == 0 else f"{rate:.1f}"


def _time(nanoseconds: float | None) -> str:
    """Return a time in at most six characters, with two significant digits or more."""
    if nanoseconds is None:
        return "-"
    if nanoseconds == float("inf"):
        return ">128s"
    if nanoseconds >= 100 * NANOSECONDS:
        return _clock(nanoseconds / NANOSECONDS)
    for unit, name in _TIME_UNITS:
        if nanoseconds >= unit:
            number = nanoseconds / unit
            return f"{number:.1f}{name}" if number < _WHOLE_TIMES else f"{number:.0f}{name}"
    return "0"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"
