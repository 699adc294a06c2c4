# SPDX-License-Identifier: GPL-2.0-only
"""The stall detector: does an invalidation wait for the pins of its file, exactly as long as they last?

It reads the start and end of invalidations and pins from the ledger, and judges the excess: the time for
which an invalidation continued after the release of the last pin that it had to wait for. An invalidation
that ended before this release ended too early.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from soak.detectors.tasks import hangs_in_kernel, sleeps_for_pages
from soak.ledger.recorder import HOLDS, RECORDER
from soak.ledger.schema import CANARY
from soak.model.cell import Cell
from soak.model.vocabulary import (
    INVALIDATIONS,
    SHORT_PINS,
    Backing,
    Interface,
    Operation,
    RegionKind,
    Role,
    Violation,
)
from soak.workload.expectations import expected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from soak.ledger.writer import BlockWriter
    from soak.model.kernels import Release

_REMEMBERED_HOLDS: Final = 2 * HOLDS.length
# The kernel's timeout of a block request (30 * HZ in blk_mq_init_allocated_queue(), block/blk-mq.c). A
# pin without a request lasts for milliseconds.
_REQUEST_NS: Final = 30_000_000_000
# A task that stays runnable for longer does not lack a CPU; it spins in the kernel.
_STARVED_NS: Final = 30_000_000_000
_File = tuple[str, int]


@dataclass(frozen=True)
class Hold:
    """A short pin. Times are monotonic nanoseconds; 0 stands for unknown, or not yet."""

    worker: str
    interface: Interface
    backing: Backing
    certain: bool
    repeated: bool
    take_before: int
    take_after: int
    release_before: int
    release_after: int

    def pinned_at(self, moment: int) -> bool:
        """Return whether the pages were certainly pinned at this past moment.

        A pin without a recorded release is not certain: its holder may have been killed, and the
        kernel released the pin.
        """
        return 0 < self.take_after <= moment < self.release_before

    def may_be_taken_after(self, moment: int) -> bool:
        """Return whether pages may have been pinned, and so mapped, after this moment."""
        return self.repeated or not self.take_after or self.take_after > moment

    def may_be_pinned_at(self, moment: int) -> bool:
        """Return whether the pin was taken by this moment and has no recorded release yet."""
        lasts = not (self.release_before or self.release_after)
        return lasts and 0 < self.take_after <= moment


@dataclass(frozen=True)
class Wait:
    """An invalidation, ended or (`end` 0) in flight. `number` counts the operations of its worker.

    `canary` marks a canary's invalidation: the ledger wrongly records its pin as released.
    """

    worker: str
    number: int
    operation: Operation
    region: str
    place: int
    start: int
    end: int
    result: int
    canary: bool = False


@dataclass(frozen=True)
class Judgement:
    """The judgement of one invalidation; `violation` is None if it was correct.

    `holds` are the pins that overlapped it, `last` the one released last, `tried` that of its trial.
    `excess` is in nanoseconds of soak time.
    """

    wait: Wait
    holds: tuple[Hold, ...]
    last: Hold | None
    tried: Hold | None
    excess: int
    violation: Violation | None
    # The overdue pin that it waits for.
    behind: Hold | None = None

    @property
    def woken(self) -> bool:
        """Whether it waited for a pin and then succeeded."""
        last, wait = self.last, self.wait
        return (
            bool(wait.end)
            and wait.result == 0
            and last is not None
            and wait.start < last.release_after <= wait.end
        )


@dataclass(frozen=True)
class Overdue:
    """A pin that lasts, or takes to be taken, longer than its bound.

    `number` counts the operations of its worker; `lasted` and `bound` are nanoseconds of soak time.
    """

    hold: Hold
    region: str
    place: int
    number: int
    lasted: int
    bound: int


class Clock(Protocol):
    """A clock of soak time."""

    def between(self, start_ns: int, end_ns: int) -> int:
        """Return the nanoseconds of soak time between two monotonic times."""


@dataclass
class _Seen:
    """A worker's block, and how far its rings have been read."""

    block: BlockWriter
    regions: tuple[str, ...]
    operations: list[Operation]
    ended: int = 0
    holds: int = 0


class StallDetector:
    """Judges each invalidation once: when it has ended, or when it has stalled."""

    def __init__(
        self,
        workers: Mapping[str, tuple[Role, BlockWriter, tuple[str, ...]]],
        clock: Clock,
        release: Release,
        *,
        late_ns: int,
        stall_ns: int,
        read: Mapping[str, tuple[int, int]] | None = None,
        asleep: Callable[[int], bool] = sleeps_for_pages,
        hangs: Callable[[int], bool] = hangs_in_kernel,
    ) -> None:
        """`workers` has role, block and region names of each worker; the bounds apply to the excess.

        `read` has the operations and holds of each worker that an earlier supervisor judged. `asleep`
        returns whether a process sleeps until pages are unpinned, `hangs` whether it is blocked in the
        kernel at all.
        """
        self._clock, self._release = clock, release
        self._late_ns, self._stall_ns = late_ns, stall_ns
        self._invalidators: dict[str, _Seen] = {}
        self._holders: dict[str, _Seen] = {}
        for name, (role, block, regions) in workers.items():
            operations = [Cell.parse(label).operation for label in block.names("counts")]
            seen = _Seen(block, regions, operations, *(read or {}).get(name, (0, 0)))
            if role is Role.INVALIDATOR:
                self._invalidators[name] = seen
            elif role is Role.HOLDER:
                self._holders[name] = seen
        # The released pins of each file by holder, in order: a holder has one pin at a time.
        self._holds: dict[_File, dict[str, deque[Hold]]] = defaultdict(
            lambda: defaultdict(lambda: deque(maxlen=_REMEMBERED_HOLDS))
        )
        # The newest pin of each holder, if its release is not recorded yet.
        self._current: dict[str, tuple[_File, Hold]] = {}
        # The ring may have lost pins from before this moment: overwritten before they were read.
        self._unread_until = 0
        self._asleep, self._hangs = asleep, hangs
        # Overdue pins by worker: they no longer excuse the invalidations that wait for them.
        self._overdue: dict[str, Hold] = {}
        self._stalled: dict[str, int] = {}
        # The wait in which a worker slept long after the last pin, for pages or at all. A task that only
        # lacked a CPU did not wake up late.
        self._slept: dict[str, int] = {}
        self._hung: dict[str, int] = {}
        # Waits that ended during a pin without a recorded release.
        self._undecided: list[Wait] = []

    def look(self, now_ns: int) -> list[Judgement]:
        """Judge the invalidations that have ended since the last look, and those that have stalled."""
        ended = [wait for name in self._invalidators for wait in self._ended(name)]
        in_flight = [wait for name in self._invalidators if (wait := self._in_flight(name))]
        # Read pins after waits: a pin that still has no release was held when the wait ended.
        for name in self._holders:
            self._read_holds(name)
        undecided, judged = [], []
        for wait in (*self._undecided, *(wait for wait in ended if not self._is_known(wait))):
            holds = self._overlapping(wait, wait.end)
            if self._needs_release(wait, holds):
                undecided.append(wait)
            else:
                judged.append(self._judge_ended(wait, holds))
        self._undecided = undecided
        for wait in in_flight:
            judgement = self._judge_in_flight(wait, now_ns)
            if judgement is not None and not self._is_known(wait):
                self._stalled[wait.worker] = wait.number
                judged.append(judgement)
        return judged

    def look_for_overdue(self, now_ns: int) -> list[Overdue]:
        """Return the pins that became overdue since the last look.

        A pin whose holder only lacks a CPU is not overdue.
        """
        found = []
        for name, ((region, place), hold) in self._current.items():
            seen, known = self._holders[name], self._overdue.get(name)
            # The ledger's record of a canary's pin is wrong on purpose.
            if seen.block.block.kind == CANARY or (
                known is not None and known.take_before == hold.take_before
            ):
                continue
            lasted = self._clock.between(hold.take_after or hold.take_before, now_ns)
            bound = self._bound(hold)
            if lasted > bound and self._hangs(seen.block.get("pid")):
                self._overdue[name] = hold
                number = seen.block.get("begun") - 1
                found.append(Overdue(hold, region, place, number, lasted, bound))
        return found

    def uncovered(self) -> list[Cell]:
        """Return the pairs of invalidation and pin in this run that no expectation covers."""
        interfaces = {
            Cell.parse(label).interface
            for seen in self._holders.values()
            for label in seen.block.names("counts")
        } & set(SHORT_PINS)
        operations = {
            operation for seen in self._invalidators.values() for operation in seen.operations
        } & set(INVALIDATIONS)
        return [
            cell
            for operation in sorted(operations)
            for interface in sorted(interfaces)
            if expected(cell := Cell(operation, RegionKind.FS_DAX, interface), self._release) is None
        ]

    def read(self) -> dict[str, tuple[int, int]]:
        """Return the numbers of judged operations and holds of each worker."""
        seen = {**self._invalidators, **self._holders}
        return {
            name: (entry.ended, entry.holds)
            for name, entry in seen.items()
            if entry.block.block.kind != CANARY
        }

    def _bound(self, hold: Hold) -> int:
        """Return how long a pin may last, or be in the making."""
        by_device = hold.interface is Interface.O_DIRECT or not hold.take_after
        return self._stall_ns + (_REQUEST_NS if by_device else 0)

    def _is_known(self, wait: Wait) -> bool:
        return self._stalled.get(wait.worker) == wait.number

    def _ended(self, name: str) -> Iterator[Wait]:
        seen = self._invalidators[name]
        ended = seen.block.get("ended")
        unread, seen.ended = RECORDER.unread(seen.ended, ended), ended
        for number in unread:
            wait = _line(name, seen, number)
            if wait is not None and wait.end:
                yield wait

    def _in_flight(self, name: str) -> Wait | None:
        seen = self._invalidators[name]
        begun = seen.block.get("begun")
        if begun == seen.block.get("ended"):
            return None
        return _line(name, seen, begun - 1)

    def _read_holds(self, name: str) -> None:
        seen = self._holders[name]
        begun = seen.block.get("holds_begun")
        unread = HOLDS.unread(seen.holds, begun)
        rows = [_hold(name, seen, number) for number in unread]
        if unread.start > seen.holds and rows:
            self._unread_until = max(self._unread_until, rows[0][1].take_before)
        self._current.pop(name, None)
        for file, hold in rows:
            if hold.release_after:
                self._holds[file][name].append(hold)
            else:
                self._current[name] = (file, hold)
        seen.holds = begun - 1 if name in self._current else begun

    def _overlapping(self, wait: Wait, end: int) -> tuple[Hold, ...]:
        """Return the pins of the file that may overlap the time from the wait's start to `end`.

        Released pins come first, in order of their release.
        """
        file = (wait.region, wait.place)
        before = []
        for holds in self._holds[file].values():
            for hold in reversed(holds):
                # This holder released all earlier pins before this one.
                if hold.release_after <= wait.start:
                    break
                if hold.take_before < end and hold.release_after != hold.take_before:
                    before.append(hold)
        before.sort(key=lambda hold: hold.release_after)
        now = (hold for held, hold in self._current.values() if held == file)
        return (*before, *(hold for hold in now if hold.take_before < end))

    def _judge_ended(self, wait: Wait, holds: tuple[Hold, ...]) -> Judgement:
        held_on = any(not hold.release_after or hold.release_after > wait.end for hold in holds)
        last = max(holds, key=lambda hold: hold.release_after, default=None)
        since = max(wait.start, self._unread_until, *(hold.release_after for hold in holds))
        excess = 0 if held_on else self._clock.between(since, wait.end)
        violation = None
        if any(self._ended_early(wait, hold) for hold in holds):
            violation = Violation.EARLY_TRUNCATE
        elif excess > self._stall_ns and self._was_asleep(wait, self._slept, self._hung):
            violation = Violation.STALL
        elif (
            excess > self._late_ns and wait.result == 0 and holds and self._was_asleep(wait, self._slept)
        ):
            violation = Violation.LATE_WAKEUP
        return Judgement(wait, holds, last, _tried(wait, holds), excess, violation)

    def _judge_in_flight(self, wait: Wait, now_ns: int) -> Judgement | None:
        """Judge an invalidation in flight; None while it may wait, or within the bound."""
        holds = self._overlapping(wait, now_ns)
        if wait.end or any(self._excuses(hold, now_ns) for hold in holds):
            return None
        since = max(wait.start, self._unread_until, *(hold.release_after for hold in holds))
        excess = self._clock.between(since, now_ns)
        pid = self._invalidators[wait.worker].block.get("pid")
        if excess > self._late_ns // 2 and self._asleep(pid):
            self._slept[wait.worker] = wait.number
        hangs = excess > self._stall_ns // 2 and self._hangs(pid)
        if hangs:
            self._hung[wait.worker] = wait.number
        # A runnable task lacks a CPU, but not for this long.
        if excess <= self._stall_ns or not (hangs or excess > self._stall_ns + _STARVED_NS):
            return None
        last = max(holds, key=lambda hold: hold.release_after, default=None)
        behind = next((hold for hold in holds if self._is_overdue(hold)), None)
        return Judgement(wait, holds, last, _tried(wait, holds), excess, Violation.STALL, behind)

    def _was_asleep(self, wait: Wait, *seen: dict[str, int]) -> bool:
        return any(asleep.get(wait.worker) == wait.number for asleep in seen)

    def _needs_release(self, wait: Wait, holds: tuple[Hold, ...]) -> bool:
        """Return whether the judgement depends on a pin whose release is not recorded yet."""
        return any(hold.may_be_pinned_at(wait.start) and self._has_to_wait(wait, hold) for hold in holds)

    def _excuses(self, hold: Hold, now_ns: int) -> bool:
        """Return whether a pin excuses a wait now.

        A pin that has been in the making for seconds does not: it is blocked itself.
        """
        if hold.release_after or self._is_overdue(hold):
            return False
        taking = self._clock.between(hold.take_before, now_ns)
        return bool(hold.take_after) or taking <= self._stall_ns

    def _is_overdue(self, hold: Hold) -> bool:
        overdue = self._overdue.get(hold.worker)
        return (
            overdue is not None
            and overdue.take_before == hold.take_before
            and bool(hold.take_after)
            and not hold.release_after
        )

    def _ended_early(self, wait: Wait, hold: Hold) -> bool:
        return hold.pinned_at(wait.start) and hold.pinned_at(wait.end) and self._has_to_wait(wait, hold)

    def _has_to_wait(self, wait: Wait, hold: Hold) -> bool:
        """Return whether an invalidation must not succeed before the pin is released."""
        if wait.result or not hold.certain:
            return False
        cell = Cell(wait.operation, RegionKind.FS_DAX, hold.interface)
        row = expected(cell, self._release, backing=hold.backing)
        return row is not None and row.waits


def _tried(wait: Wait, holds: Iterable[Hold]) -> Hold | None:
    """Return the pin of a trial: a certain pin of the file, held when the wait began."""
    for hold in holds:
        until = hold.release_before or hold.release_after or wait.start + 1
        if hold.certain and (hold.take_after or hold.take_before) <= wait.start < until:
            return hold
    return None


def _line(name: str, seen: _Seen, number: int) -> Wait | None:
    """Read an invalidation from the flight recorder; None for another operation."""
    line = RECORDER.line(seen.block.view("recorder"), number)
    if line["cell"] >= len(seen.operations):
        return None
    operation = seen.operations[line["cell"]]
    if operation not in INVALIDATIONS:
        return None
    return Wait(
        name,
        number,
        operation,
        seen.regions[line["region"]],
        line["place"],
        line["start_ns"],
        line["end_ns"],
        line["result"],
        seen.block.block.kind == CANARY,
    )


def _hold(name: str, seen: _Seen, number: int) -> tuple[_File, Hold]:
    line = HOLDS.line(seen.block.view("holds"), number)
    hold = Hold(
        name,
        SHORT_PINS[line["interface"]],
        Backing.SHARED if line["mapped"] else Backing.UNMAPPED,
        bool(line["certain"]),
        bool(line["repeated"]),
        line["take_before"],
        line["take_after"],
        line["release_before"],
        line["release_after"],
    )
    return (seen.regions[line["region"]], line["place"]), hold
