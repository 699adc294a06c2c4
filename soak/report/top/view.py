# SPDX-License-Identifier: GPL-2.0-only
"""What a live view shows, computed from readings of a ledger; no terminal is known here."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from soak.ledger.recorder import in_flight
from soak.ledger.schema import HOST, NO_KNOWN_ISSUE, SUPERVISOR, WORKER, leaks_field
from soak.model.cell import Cell
from soak.model.vocabulary import Outcome, RunState, VerdictWord, Violation, WorkerState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from soak.ledger.reader import BlockSnapshot, LedgerReader

NANOSECONDS: Final = 1_000_000_000
# As the exporter has it: a supervisor beats ten times a second.
HEARTBEAT_LIMIT_NS: Final = 15 * NANOSECONDS
_FULL_PPM: Final = 1_000_000


@dataclass(frozen=True)
class Histogram:
    """Durations in a ledger's buckets; the last bucket has no upper bound."""

    bounds_ns: Sequence[int]
    buckets: Sequence[int]

    @property
    def count(self) -> int:
        return sum(self.buckets)

    def since(self, before: Histogram | None) -> Histogram:
        """Return what has come in since an earlier reading."""
        if before is None:
            return self
        pairs = zip(self.buckets, before.buckets, strict=True)
        return Histogram(self.bounds_ns, [max(now - then, 0) for now, then in pairs])

    def plus(self, other: Histogram) -> Histogram:
        pairs = zip(self.buckets, other.buckets, strict=True)
        return Histogram(self.bounds_ns, [a + b for a, b in pairs])

    def quantile_ns(self, share: float) -> float | None:
        """Return an upper bound of a quantile, one bucket wide; None where nothing was counted.

        It is infinite where the quantile lies above the highest bound.
        """
        if self.count == 0:
            return None
        rank = max(share * self.count, 1)
        bounds = [*self.bounds_ns, float("inf")]
        totals = zip(bounds, accumulate(self.buckets), strict=True)
        return next(bound for bound, total in totals if total >= rank)


@dataclass(frozen=True)
class Worker:
    """A worker's block, in words. `since_ns` is when the operation in flight was started, or 0."""

    name: str
    state: str
    doing: Cell | None
    since_ns: int
    ended: int
    restarts: int
    wedged: int
    counts: Mapping[Cell, Mapping[str, int]]
    durations: Mapping[Cell, Histogram]


class Reading:
    """All blocks of a ledger at about one moment.

    A ledger that is damaged or of another version raises one of `UNREADABLE` in `soak.ledger.layout`,
    here or where a view is made of it.
    """

    def __init__(self, reader: LedgerReader, taken_ns: int, epoch_ns: int) -> None:
        """`taken_ns` is any clock that never goes back, `epoch_ns` the time of day."""
        self.run: Mapping[str, Any] = reader.layout.run
        self.taken_ns = taken_ns
        supervisor = reader.block(SUPERVISOR)
        host = next(iter(reader.blocks(HOST)), None)
        self.kernel = supervisor.text("kernel_release")
        self.accelerator = host.text("accelerator") if host else ""
        self.soaked_ns = supervisor.get("soaked_ns")
        self.ends_ns = supervisor.get("ends_ns")
        self.heartbeat_ns = supervisor.get("heartbeat_ns")
        beat = self.heartbeat_ns + supervisor.get("realtime_offset_ns")
        seen = "guest_heartbeat_realtime_ns"
        if host and seen in host.block.fields and host.get(seen):
            # By the host's clock: a guest's may be wrong.
            beat = host.get(seen)
        elif not self.heartbeat_ns:
            # Until there is a supervisor, a lab's host says whether anybody is at work.
            beat = (host.get("heartbeat_realtime_ns") if host else 0) or epoch_ns
        # How long ago that was, by the time of day: a guest's other clocks are its own.
        self.silent_ns = max(epoch_ns - beat, 0)
        self.state = _state(supervisor, host)
        judge = host or supervisor
        word = judge.word("verdict") if judge.get("pid") else VerdictWord.UNKNOWN
        self.verdict = VerdictWord(word)
        self.violations = supervisor.named_rows("violations")
        if host:  # which alone can count the deaths of the machine that the supervisor runs on
            lost = host.get("lost_machines")
            self.violations[Violation.LOST_MACHINE][NO_KNOWN_ISSUE] += lost
        self.covered = supervisor.get("coverage_cells"), supervisor.get("coverage_cells_required")
        self.waits = supervisor.named_rows("waits")
        bounds = tuple(int(bound) for bound in self.run["bucket_bounds_ns"])
        delays = supervisor.rows("wakeup_delay_buckets")
        self.wakeups = {
            interface: Histogram(bounds, row)
            for interface, row in zip(supervisor.named("wakeup_delay_sum_ns"), delays, strict=True)
        }
        self.regions = [_region(supervisor, entry["name"]) for entry in self.run["regions"]]
        self.workers = [_worker(block, supervisor, bounds) for block in reader.blocks(WORKER)]

    @property
    def alive(self) -> bool:
        """Whether nobody has said that the run is over."""
        return self.state not in {RunState.ENDED, RunState.LOST}

    @property
    def beating(self) -> bool:
        return self.alive and self.silent_ns < HEARTBEAT_LIMIT_NS

    @property
    def now_ns(self) -> int:
        """The monotonic time of the machine under test, as far as its ledger tells."""
        return self.heartbeat_ns + (0 if self.beating or not self.alive else self.silent_ns)


@dataclass(frozen=True)
class Region:
    """What the pages of a region carry too much; None where that was being written for good."""

    name: str
    found: int | None
    predicted: int | None
    unexplained: int | None
    headroom: float
    swept_ns: int


@dataclass(frozen=True)
class WorkerLine:
    """`seconds` is how long the operation has been in flight, `rate` how many end in a second."""

    name: str
    state: str
    doing: str
    seconds: float | None
    rate: float | None
    restarts: int
    wedged: int


@dataclass(frozen=True)
class OperationLine:
    """`rate`, `p50_ns` and `p99_ns` are those of the span of the view, `total` of the whole run."""

    cell: Cell
    total: int
    rate: float | None
    p50_ns: float | None
    p99_ns: float | None


@dataclass(frozen=True)
class RefusalLine:
    """An errno, and whether the kernel owed it."""

    cell: Cell
    errno: str
    owed: bool
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
    """Waits that were woken, of the whole run: there are too few of them for less."""

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
    """Everything that is shown.

    `span` is the time that rates and latencies speak of, in seconds; None where it is the whole run.
    `silent` is how long the supervisor has not beaten, where that is too long for a run that goes on.
    """

    reading: Reading
    state: str
    span: float | None
    elapsed: float
    to_go: float | None
    silent: float | None
    workers: tuple[WorkerLine, ...]
    operations: tuple[OperationLine, ...]
    refusals: tuple[RefusalLine, ...]
    stalls: tuple[StallLine, ...]
    wakeups: tuple[WakeupLine, ...]
    violations: tuple[ViolationLine, ...]


def make_view(now: Reading, before: Reading | None = None) -> View:
    """Compute what is shown now, with rates since `before` or else since the run started."""
    if before is not None and before.taken_ns >= now.taken_ns:
        before = None
    elapsed = now.soaked_ns / NANOSECONDS
    span = None if before is None else (now.taken_ns - before.taken_ns) / NANOSECONDS
    seconds = elapsed if span is None else span
    to_go = max(now.ends_ns - now.now_ns, 0) / NANOSECONDS if now.ends_ns and now.alive else None
    silent = now.silent_ns / NANOSECONDS if now.alive and not now.beating else None
    return View(
        reading=now,
        state=now.state,
        span=span,
        elapsed=elapsed,
        to_go=to_go,
        silent=silent,
        workers=tuple(_worker_lines(now, before, seconds)),
        operations=tuple(_operation_lines(now, before, seconds)),
        refusals=tuple(_refusal_lines(now, before, seconds)),
        stalls=tuple(
            StallLine(operation, row["stalls"], row["stalled"], row["stalled_ns"] / NANOSECONDS)
            for operation, row in now.waits.items()
            if row["stalls"] or row["stalled"]
        ),
        wakeups=tuple(
            WakeupLine(interface, found.count, found.quantile_ns(0.5), found.quantile_ns(0.99))
            for interface, found in now.wakeups.items()
            if found.count
        ),
        violations=tuple(_violation_lines(now)),
    )


def _state(supervisor: BlockSnapshot, host: BlockSnapshot | None) -> str:
    """Return the state of whoever says that it is over, else the supervisor's."""
    own = supervisor.word("state") if supervisor.get("pid") else str(RunState.PREPARING)
    if host is None or not host.get("pid"):
        return own
    seen = host.word("state")
    return seen if seen in {RunState.ENDED, RunState.LOST} else own


def _region(supervisor: BlockSnapshot, name: str) -> Region:
    words = supervisor.group(leaks_field(name))
    swept = supervisor.named("last_sweep_ns")[name]
    headroom = supervisor.named("headroom_ppm")[name] / _FULL_PPM
    if words is None:
        return Region(name, None, None, None, headroom, swept)
    _, *columns = supervisor.named(leaks_field(name))  # the first is the sequence number
    sums: Counter[str] = Counter()
    for column, count in zip(columns, words, strict=True):
        kind, _, issue = column.partition(" ")
        sums[kind] += count
        if issue == NO_KNOWN_ISSUE:
            sums[f"{kind} unexplained"] += count
    return Region(name, sums["leaked"], sums["predicted"], sums["leaked unexplained"], headroom, swept)


def _worker(block: BlockSnapshot, supervisor: BlockSnapshot, bounds: Sequence[int]) -> Worker:
    name = block.block.name
    state = WorkerState.DEAD if supervisor.named("dead")[name] else block.word("state")
    rows = {Cell.parse(label): row for label, row in block.named_rows("counts").items()}
    doing, since = _in_flight(block, tuple(rows)) if state != WorkerState.DEAD else (None, 0)
    return Worker(
        name=name,
        state=state,
        doing=doing,
        since_ns=since,
        ended=block.get("ended"),
        restarts=supervisor.named("restarts")[name],
        wedged=supervisor.named("wedged")[name],
        counts=rows,
        durations={
            cell: Histogram(bounds, row)
            for cell, row in zip(rows, block.rows("duration_buckets"), strict=True)
        },
    )


def _in_flight(block: BlockSnapshot, cells: Sequence[Cell]) -> tuple[Cell | None, int]:
    """Return what the newest line of the recorder says, if that operation has not ended."""
    line = in_flight(block.get, block.flat)
    if line is None or line["end_ns"]:
        return None, 0
    return cells[line["cell"]], line["start_ns"]


def _rate(now: int, before: int, seconds: float) -> float | None:
    """Return how many a second; a count that went back belongs to a block that was begun afresh."""
    return max(now - before, 0) / seconds if seconds > 0 else None


def _worker_lines(now: Reading, before: Reading | None, seconds: float) -> Iterator[WorkerLine]:
    then = {worker.name: worker.ended for worker in before.workers} if before else {}
    for worker in now.workers:
        doing = worker.doing if now.alive else None
        yield WorkerLine(
            worker.name,
            worker.state,
            f"{doing.operation} {doing.region}" if doing else "",
            max(now.now_ns - worker.since_ns, 0) / NANOSECONDS if doing else None,
            _rate(worker.ended, then.get(worker.name, 0), seconds),
            worker.restarts,
            worker.wedged,
        )


def _totals(reading: Reading | None) -> tuple[dict[Cell, Counter[str]], dict[Cell, Histogram]]:
    """Sum counts and durations over all workers."""
    counts: dict[Cell, Counter[str]] = {}
    durations: dict[Cell, Histogram] = {}
    for worker in reading.workers if reading else ():
        for cell, row in worker.counts.items():
            counts.setdefault(cell, Counter()).update(row)
            own = worker.durations[cell]
            durations[cell] = durations[cell].plus(own) if cell in durations else own
    return counts, durations


def _operation_lines(now: Reading, before: Reading | None, seconds: float) -> Iterator[OperationLine]:
    counts, durations = _totals(now)
    counts_then, durations_then = _totals(before)
    for cell, row in counts.items():
        recent = durations[cell].since(durations_then.get(cell))
        yield OperationLine(
            cell,
            row.total(),
            _rate(row.total(), counts_then.get(cell, Counter()).total(), seconds),
            recent.quantile_ns(0.5),
            recent.quantile_ns(0.99),
        )


def _refusal_lines(now: Reading, before: Reading | None, seconds: float) -> Iterator[RefusalLine]:
    counts, _ = _totals(now)
    then, _ = _totals(before)
    for cell, row in counts.items():
        for column, total in row.items():
            outcome, _, errno = column.partition(" ")
            if errno and total:
                rate = _rate(total, then.get(cell, Counter())[column], seconds)
                yield RefusalLine(cell, errno, outcome == Outcome.REFUSED, total, rate)


def _violation_lines(now: Reading) -> Iterator[ViolationLine]:
    for kind, row in now.violations.items():
        for issue, count in row.items():
            if count:
                yield ViolationLine(kind, None if issue == NO_KNOWN_ISSUE else issue, count)
