# SPDX-License-Identifier: GPL-2.0-only
"""Computes the contents of the live view from readings of a ledger, independent of the terminal."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from soak.ledger.schema import NO_KNOWN_ISSUE
from soak.ledger.view import NANOSECONDS, LedgerView
from soak.ledger.worker_view import outcome_and_errno
from soak.model.vocabulary import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from soak.ledger.reader import LedgerReader
    from soak.model.cell import Cell
    from soak.model.vocabulary import RunState, VerdictWord

_FULL_PPM: Final = 1_000_000


@dataclass(frozen=True)
class Reading:
    """A ledger, loaded in full, and the monotonic time of the reading."""

    ledger: LedgerView
    taken_ns: int

    @classmethod
    def take(cls, reader: LedgerReader, taken_ns: int, epoch_ns: int) -> Self:
        """Read a ledger; `epoch_ns` is the wall clock.

        A damaged ledger, or one of another version, raises one of `UNREADABLE` in
        `soak.ledger.layout`, here or in `make_view`.
        """
        return cls(LedgerView(reader, epoch_ns).load(), taken_ns)

    def moved(self, before: Reading) -> bool:
        """Whether the run is alive, or had a heartbeat after `before`."""
        alive = not (self.ledger.over or self.ledger.silent)
        return alive or self._heartbeat_ns != before._heartbeat_ns

    @property
    def _heartbeat_ns(self) -> int:
        return self.ledger.supervisor.get("heartbeat_ns")


@dataclass(frozen=True)
class RegionLine:
    """The leaked page references of a region; None if the group in the ledger is torn.

    `swept` is the time since the last sweep in seconds, None before the first.
    """

    name: str
    found: int | None
    predicted: int | None
    unexplained: int | None
    headroom: float
    swept: float | None


@dataclass(frozen=True)
class WorkerLine:
    """`seconds` is the time of the operation in flight, `rate` the ended operations per second."""

    name: str
    state: str
    doing: str
    seconds: float | None
    rate: float | None
    restarts: int
    wedged: int


@dataclass(frozen=True)
class OperationLine:
    """`rate`, `p50_ns` and `p99_ns` cover the span of the view, `total` the whole run."""

    cell: Cell
    total: int
    rate: float | None
    p50_ns: float | None
    p99_ns: float | None


@dataclass(frozen=True)
class RefusalLine:
    """An errno, and whether it was expected."""

    cell: Cell
    errno: str
    expected: bool
    total: int
    rate: float | None


@dataclass(frozen=True)
class StallLine:
    operation: str
    stalls: int
    stalled: int
    seconds: float


@dataclass(frozen=True)
class WakeupLine:
    """Wake-ups of the whole run, because a shorter span has too few."""

    interface: str
    count: int
    p50_ns: float | None
    p99_ns: float | None


@dataclass(frozen=True)
class ViolationLine:
    kind: str
    known_issue: str | None
    count: int


@dataclass(frozen=True)
class View:
    """All contents of the live view.

    `covered` is the numbers of covered and required cells. `span` is the period of rates and latencies in
    seconds; None for the whole run. `given_up` is set if the last heartbeat is older than the limit, in
    any state; `silent` is then its age in seconds if the run is not over. `no_heartbeat` is set if there
    never was one.
    """

    run: Mapping[str, Any]
    kernel: str
    accelerator: str
    state: RunState
    verdict: VerdictWord
    covered: tuple[int, int]
    given_up: bool
    span: float | None
    elapsed: float
    to_go: float | None
    silent: float | None
    no_heartbeat: bool
    regions: tuple[RegionLine, ...]
    workers: tuple[WorkerLine, ...]
    operations: tuple[OperationLine, ...]
    refusals: tuple[RefusalLine, ...]
    stalls: tuple[StallLine, ...]
    wakeups: tuple[WakeupLine, ...]
    violations: tuple[ViolationLine, ...]


def make_view(now: Reading, before: Reading | None = None) -> View:
    """Compute the view, with rates since `before`, or since the start of the run."""
    if before is not None and before.taken_ns >= now.taken_ns:
        before = None
    ledger, supervisor = now.ledger, now.ledger.supervisor
    elapsed = ledger.soaked_seconds
    ends_ns = supervisor.get("ends_ns") if not ledger.over else 0
    span = None if before is None else (now.taken_ns - before.taken_ns) / NANOSECONDS
    seconds = elapsed if span is None else span
    return View(
        run=ledger.run,
        kernel=supervisor.text("kernel_release"),
        accelerator=ledger.host.text("accelerator") if ledger.host else "",
        state=ledger.state,
        verdict=ledger.verdict,
        covered=(supervisor.get("coverage_cells"), supervisor.get("coverage_cells_required")),
        given_up=ledger.silent,
        span=span,
        elapsed=elapsed,
        to_go=_seconds_between(ledger.monotonic_ns, ends_ns) if ends_ns else None,
        silent=(ledger.silent_ns or 0) / NANOSECONDS if ledger.silent and not ledger.over else None,
        no_heartbeat=ledger.silent_ns is None and not ledger.over,
        regions=tuple(_region_lines(ledger)),
        workers=tuple(_worker_lines(now, before, seconds)),
        operations=tuple(_operation_lines(now, before, seconds)),
        refusals=tuple(_refusal_lines(now, before, seconds)),
        stalls=tuple(
            StallLine(operation, row["stalls"], row["stalled"], row["stalled_ns"] / NANOSECONDS)
            for operation, row in supervisor.named_rows("waits").items()
            if row["stalls"] or row["stalled"]
        ),
        wakeups=tuple(
            WakeupLine(interface, found.count, found.quantile_ns(0.5), found.quantile_ns(0.99))
            for interface, found in ledger.wakeup_delays.items()
            if found.count
        ),
        violations=tuple(_violation_lines(ledger)),
    )


def _seconds_between(start_ns: int, end_ns: int) -> float:
    return max(end_ns - start_ns, 0) / NANOSECONDS


def _region_lines(ledger: LedgerView) -> Iterator[RegionLine]:
    last_sweeps = ledger.supervisor.named("last_sweep_ns")
    headroom = ledger.supervisor.named("headroom_ppm")
    for name, leaks in ledger.leaks.items():
        swept_ns = last_sweeps[name]
        yield RegionLine(
            name,
            None if leaks is None else sum(leaks["leaked"].values()),
            None if leaks is None else sum(leaks["predicted"].values()),
            None if leaks is None else leaks["leaked"][NO_KNOWN_ISSUE],
            headroom[name] / _FULL_PPM,
            _seconds_between(swept_ns, ledger.monotonic_ns) if swept_ns else None,
        )


def _rate(now: int, before: int, seconds: float) -> float | None:
    """Return the rate per second; a count that decreased belongs to a block that was cleared."""
    return max(now - before, 0) / seconds if seconds > 0 else None


def _worker_lines(now: Reading, before: Reading | None, seconds: float) -> Iterator[WorkerLine]:
    ledger = now.ledger
    workers_then = before.ledger.workers if before else ()
    then = {worker.name: worker.block.get("ended") for worker in workers_then}
    for worker in ledger.workers:
        flight = ledger.in_flight.get(worker.name)
        yield WorkerLine(
            worker.name,
            worker.state,
            f"{flight.cell.operation} {flight.cell.region}" if flight else "",
            _seconds_between(flight.start_ns, ledger.monotonic_ns) if flight else None,
            _rate(worker.block.get("ended"), then.get(worker.name, 0), seconds),
            worker.restarts,
            worker.wedged,
        )


def _counts(reading: Reading | None) -> Mapping[Cell, Counter[str]]:
    return reading.ledger.counts if reading else {}


def _operation_lines(now: Reading, before: Reading | None, seconds: float) -> Iterator[OperationLine]:
    durations, counts_then = now.ledger.durations, _counts(before)
    durations_then = before.ledger.durations if before else {}
    for cell, row in now.ledger.counts.items():
        recent = durations[cell].since(durations_then.get(cell))
        yield OperationLine(
            cell,
            row.total(),
            _rate(row.total(), counts_then.get(cell, Counter()).total(), seconds),
            recent.quantile_ns(0.5),
            recent.quantile_ns(0.99),
        )


def _refusal_lines(now: Reading, before: Reading | None, seconds: float) -> Iterator[RefusalLine]:
    then = _counts(before)
    for cell, row in now.ledger.counts.items():
        for column, total in row.items():
            outcome, errno = outcome_and_errno(column)
            if errno and total:
                rate = _rate(total, then.get(cell, Counter())[column], seconds)
                yield RefusalLine(cell, errno, outcome is Outcome.REFUSED, total, rate)


def _violation_lines(ledger: LedgerView) -> Iterator[ViolationLine]:
    for kind, row in ledger.violations.items():
        for issue, count in row.items():
            if count:
                yield ViolationLine(kind, None if issue == NO_KNOWN_ISSUE else issue, count)
