# SPDX-License-Identifier: GPL-2.0-only
"""Interprets a ledger for the exporter, the live view and the lab.

All rules over more than one field are here: which writer's state, verdict and clock apply, which
operations are in flight, and which violations count.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from soak.ledger.histogram import Histogram
from soak.ledger.schema import HOST, NO_KNOWN_ISSUE, SUPERVISOR, WORKER, leaks_field
from soak.ledger.worker_view import Worker
from soak.model.vocabulary import Operation, RegionKind, RunState, VerdictWord, Violation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from soak.ledger.reader import BlockSnapshot, LedgerReader
    from soak.ledger.worker_view import InFlight
    from soak.model.cell import Cell
    from soak.model.vocabulary import Interface

NANOSECONDS: Final = 1_000_000_000
# A supervisor sends ten heartbeats a second; without one for this long it hangs or is dead.
HEARTBEAT_LIMIT_NS: Final = 15 * NANOSECONDS
_OVER: Final = frozenset({RunState.ENDED, RunState.LOST})
_AT_WORK: Final = frozenset({RunState.RUNNING, RunState.PAUSED})


@dataclass(frozen=True)
class Region:
    """A region from the header; `size` is in bytes."""

    name: str
    kind: RegionKind
    size: int


# Page references of a region by kind of count (leaked, leaked_total, predicted) and known issue; None if
# the supervisor stopped while it wrote them.
Leaks = dict[str, dict[str, int]] | None


class LedgerView:
    """A ledger at one moment. It reads each block once, in a single system call, on first use.

    On a damaged ledger any property may raise one of `UNREADABLE` in `soak.ledger.layout`.
    """

    def __init__(self, reader: LedgerReader, now_ns: int) -> None:
        """`now_ns` is the wall clock, in nanoseconds since the epoch."""
        self._reader = reader
        self._now_ns = now_ns

    def load(self) -> LedgerView:
        """Read all blocks now, for a view that is kept."""
        _ = self.host, self.workers, self.leaks
        return self

    # --- the blocks ---

    @property
    def run(self) -> Mapping[str, Any]:
        """The facts of the run, from the header."""
        return self._reader.layout.run

    @cached_property
    def bucket_bounds_ns(self) -> tuple[int, ...]:
        """The upper bounds of all histograms of this ledger, in nanoseconds."""
        return tuple(int(bound) for bound in self.run["bucket_bounds_ns"])

    @cached_property
    def supervisor(self) -> BlockSnapshot:
        return self._reader.block(SUPERVISOR)

    @cached_property
    def host(self) -> BlockSnapshot | None:
        """The block of the lab's host; None outside the lab."""
        return next(iter(self._reader.blocks(HOST)), None)

    @cached_property
    def workers(self) -> list[Worker]:
        dead, restarts, wedged = map(self.supervisor.named, ("dead", "restarts", "wedged"))
        return [
            Worker(
                block,
                given_up=dead[block.block.name] > 0,
                restarts=restarts[block.block.name],
                wedged=wedged[block.block.name],
            )
            for block in self._reader.blocks(WORKER)
        ]

    @cached_property
    def regions(self) -> list[Region]:
        return [
            Region(str(region["name"]), RegionKind(region["kind"]), int(region["size"]))
            for region in self.run["regions"]
        ]

    @cached_property
    def cells(self) -> list[Cell]:
        """The cells of all workers, in the order of the header."""
        return list(dict.fromkeys(cell for worker in self.workers for cell in worker.cells))

    # --- state and verdict ---

    @cached_property
    def state(self) -> RunState:
        """The supervisor's state, unless the lab's host has recorded the end or prepares a guest.

        While the host prepares a guest, the supervisor's block belongs to the previous boot.
        """
        seen = self._host_state
        if seen is not None and seen in {*_OVER, RunState.PREPARING}:
            return seen
        # Before its writer starts, a block is all zeros, and 0 stands for a state and a verdict, too.
        begun = self.supervisor.get("pid") > 0
        return RunState(self.supervisor.word("state")) if begun else RunState.PREPARING

    @cached_property
    def _host_state(self) -> RunState | None:
        """The state recorded by the lab's host; None before it has started, or outside the lab."""
        host = self.host
        return RunState(host.word("state")) if host is not None and host.get("pid") else None

    @property
    def over(self) -> bool:
        return self.state in _OVER

    @property
    def active(self) -> bool:
        """Whether the run is not over and its supervisor sends heartbeats."""
        return not self.over and self._now_ns - self.beat_ns < HEARTBEAT_LIMIT_NS

    @property
    def verdict(self) -> VerdictWord:
        """The verdict of the host in a lab, because it outlives the guest; else the supervisor's."""
        judge = self.host or self.supervisor
        return VerdictWord(judge.word("verdict")) if judge.get("pid") else VerdictWord.UNKNOWN

    @property
    def soaked_seconds(self) -> float:
        """The time that the run has soaked, without pauses."""
        return self.supervisor.get("soaked_ns") / NANOSECONDS

    @property
    def boots(self) -> int:
        """The number of boots of the machine under test."""
        return (self.host or self.supervisor).get("boots")

    @property
    def journal_errors(self) -> int:
        """The number of journal lines that the supervisor or the host could not write."""
        return self.supervisor.get("journal_errors") + (
            self.host.get("journal_errors") if self.host else 0
        )

    # --- clocks ---

    @property
    def beat_ns(self) -> int:
        """The wall-clock time of the last heartbeat; 0 before the first.

        In a lab it is by the host's clock, because the guest's may be wrong.
        """
        return self._beat_seen_by_host or (self._own_beat_ns and self._own_beat_ns + self._own_offset_ns)

    @property
    def silent_ns(self) -> int | None:
        """The time since the last heartbeat; None before the first.

        In a lab, the host's heartbeat counts until the guest's supervisor has started.
        """
        beat = self.beat_ns
        if self.host is not None and (self._host_state is RunState.PREPARING or not beat):
            beat = max(beat, self.host.get("heartbeat_realtime_ns"))
        return max(self._now_ns - beat, 0) if beat else None

    @property
    def silent(self) -> bool:
        """Whether the last heartbeat is older than the limit."""
        return (self.silent_ns or 0) >= HEARTBEAT_LIMIT_NS

    @property
    def monotonic_ns(self) -> int:
        """The monotonic time of the machine under test, or of its last heartbeat once the run is over."""
        return self._own_beat_ns + (0 if self.over else self.silent_ns or 0)

    def epoch_seconds(self, monotonic_ns: int) -> float:
        """Return seconds since the epoch; 0 (never) stays 0."""
        return (monotonic_ns + self._realtime_offset_ns) / NANOSECONDS if monotonic_ns else 0.0

    @cached_property
    def _realtime_offset_ns(self) -> int:
        """The wall clock minus the monotonic clock of this ledger.

        The machine under test records its exact offset. If that disagrees with the time at which the
        lab's host saw the last heartbeat, the guest's clock is wrong, and the host's time applies.
        """
        own = self._own_offset_ns
        # Until the guest's supervisor starts, the ledger has the heartbeat of the previous boot.
        if not self._beat_seen_by_host or self._host_state is RunState.PREPARING:
            return own
        seen = self._beat_seen_by_host - self._own_beat_ns
        return own if abs(seen - own) < HEARTBEAT_LIMIT_NS else seen

    @property
    def _own_beat_ns(self) -> int:
        return self.supervisor.get("heartbeat_ns")

    @property
    def _own_offset_ns(self) -> int:
        return self.supervisor.get("realtime_offset_ns")

    @property
    def _beat_seen_by_host(self) -> int:
        seen = "guest_heartbeat_realtime_ns"
        # A ledger of an earlier version lacks this field.
        return self.host.get(seen) if self.host is not None and seen in self.host.block.fields else 0

    # --- the work ---

    @cached_property
    def begun(self) -> int:
        """The number of operations that the workers have begun."""
        return sum(worker.block.get("begun") for worker in self.workers)

    @cached_property
    def counts(self) -> dict[Cell, Counter[str]]:
        """Ended operations of all workers, by cell and by column of `COUNT_COLUMNS`."""
        sums: dict[Cell, Counter[str]] = {}
        for worker in self.workers:
            rows = worker.block.named_rows("counts").values()
            for cell, row in zip(worker.cells, rows, strict=True):
                sums.setdefault(cell, Counter()).update(row)
        return sums

    @cached_property
    def durations(self) -> dict[Cell, Histogram]:
        """Durations of the operations of all workers, by cell."""
        sums: dict[Cell, Histogram] = {}
        bounds_ns = self.bucket_bounds_ns
        for worker in self.workers:
            block = worker.block
            rows = zip(
                worker.cells, block.rows("duration_buckets"), block.flat("duration_sum_ns"), strict=True
            )
            for cell, buckets, sum_ns in rows:
                own = Histogram(bounds_ns, buckets, sum_ns)
                sums[cell] = sums[cell].plus(own) if cell in sums else own
        return sums

    @cached_property
    def in_flight(self) -> dict[str, InFlight]:
        """Operations in flight by worker.

        Empty while the run prepares or once it is over: the recorders then hold only evidence of how
        the previous boot, or the run, ended.
        """
        if self.state not in _AT_WORK:
            return {}
        flights = ((worker.name, worker.in_flight) for worker in self.workers)
        return {name: flight for name, flight in flights if flight is not None}

    @property
    def mapped_pages(self) -> dict[Interface, Counter[str]]:
        """Pages that the workers pin now, by interface and region."""
        held: dict[Interface, Counter[str]] = {}
        for worker in self.workers:
            for pinning in {cell.interface for cell in worker.cells if cell.operation is Operation.MAP}:
                pages = held.setdefault(pinning, Counter())
                pages.update(worker.block.named("pages_mapped"))
                pages.subtract(worker.block.named("pages_unmapped"))
        return held

    # --- findings ---

    @cached_property
    def violations(self) -> dict[str, dict[str, int]]:
        """Violations by kind and known issue."""
        found = self.supervisor.named_rows("violations")
        if self.host is not None:
            # Only the host can count lost machines.
            found[Violation.LOST_MACHINE][NO_KNOWN_ISSUE] += self.host.get("lost_machines")
        return found

    @cached_property
    def leaks(self) -> dict[str, Leaks]:
        """Leaked page references by region."""
        return {region.name: self._leaks(region.name) for region in self.regions}

    def _leaks(self, region: str) -> Leaks:
        field = leaks_field(region)
        words = self.supervisor.group(field)
        if words is None:
            return None
        _, *columns = self.supervisor.named(field)  # the first is the sequence number
        found: dict[str, dict[str, int]] = {}
        for column, count in zip(columns, words, strict=True):
            kind, _, issue = column.partition(" ")
            found.setdefault(kind, {})[issue] = count
        return found

    @property
    def wakeup_delays(self) -> dict[str, Histogram]:
        """The delays from the release of the last pin to the end of the wait, by interface."""
        sums_ns = self.supervisor.named("wakeup_delay_sum_ns")
        buckets = self.supervisor.rows("wakeup_delay_buckets")
        return {
            interface: Histogram(self.bucket_bounds_ns, row, sum_ns)
            for (interface, sum_ns), row in zip(sums_ns.items(), buckets, strict=True)
        }
