# SPDX-License-Identifier: GPL-2.0-only
"""Stalls: does what takes blocks away wait for pins, exactly as long as they last?

It reads when the workers began and ended their invalidations, and when they held pins, and judges the
excess: how long an invalidation went on after the last pin that it had to wait for was given back. What
ended while a pin was held that it had to wait for ended too early.
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
# How long the kernel lets a device take over a request before it gives it up itself (30 * HZ in
# blk_mq_init_allocated_queue(), block/blk-mq.c). A pin that no device has is held for milliseconds.
_REQUEST_NS: Final = 30_000_000_000
# No machine on which a soak is worth anything leaves a task that is ready to run without a processor for
# longer: it spins in the kernel.
_STARVED_NS: Final = 30_000_000_000
_File = tuple[str, int]


@dataclass(frozen=True)
class Hold:
    """A short pin. Times are monotonic nanoseconds; 0 is not known, or not yet."""

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
        """Say whether the pages were pinned for certain at this moment, which has passed.

        Of a pin that its holder has not said to give back nothing is certain: the holder may have
        been killed, and the kernel has given it back.
        """
        return 0 < self.take_after <= moment < self.release_before

    def may_be_taken_after(self, moment: int) -> bool:
        """Say whether pages may have been pinned, and so mapped, when this moment had passed."""
        return self.repeated or not self.take_after or self.take_after > moment

    def may_be_pinned_at(self, moment: int) -> bool:
        """Say whether that is for the holder to tell: it had taken the pin, and is not done with it."""
        lasts = not (self.release_before or self.release_after)
        return lasts and 0 < self.take_after <= moment


@dataclass(frozen=True)
class Wait:
    """An invalidation, ended or (`end` 0) in flight. `number` counts the operations of its worker.

    `canary` says that it waits for a pin of which the ledger does not tell the truth, on purpose.
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
    """What an invalidation has shown: `violation` is None where it kept to the rules.

    `holds` are the pins that overlapped it, `last` the one of them that was given back last, `tried`
    the one of its trial. `excess` is in nanoseconds of soak time.
    """

    wait: Wait
    holds: tuple[Hold, ...]
    last: Hold | None
    tried: Hold | None
    excess: int
    violation: Violation | None
    # The pin that it waits for, which has outlasted its bound.
    behind: Hold | None = None

    @property
    def woken(self) -> bool:
        """Whether it ended by itself after it had waited for a pin."""
        last, wait = self.last, self.wait
        return (
            bool(wait.end)
            and wait.result == 0
            and last is not None
            and wait.start < last.release_after <= wait.end
        )


@dataclass(frozen=True)
class Overdue:
    """A pin of a file that lasts, or is being taken, for longer than its bound.

    `number` counts the operations of its worker, `lasted` and `bound` are nanoseconds of soak time.
    """

    hold: Hold
    region: str
    place: int
    number: int
    lasted: int
    bound: int


class Clock(Protocol):
    """What measures soak time."""

    def between(self, start_ns: int, end_ns: int) -> int:
        """Return the nanoseconds of soak time between two monotonic times."""


@dataclass
class _Seen:
    """How far a worker's rings were read, and what each of its cells means."""

    block: BlockWriter
    regions: tuple[str, ...]
    operations: list[Operation]
    ended: int = 0
    holds: int = 0


class StallDetector:
    """Judges each invalidation once, when it has ended or when it has stalled."""

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
        """Take role, block and region names of each worker, and the bounds of the excess.

        `asleep` says whether a process sleeps for pages now, `hangs` whether it sleeps in the kernel at
        all, `read` how many operations and holds of each were judged by another supervisor.
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
        # Of each holder the pins of a file that were given back, one behind the other: it has one at
        # a time.
        self._holds: dict[_File, dict[str, deque[Hold]]] = defaultdict(
            lambda: defaultdict(lambda: deque(maxlen=_REMEMBERED_HOLDS))
        )
        # The newest pin of each holder, which may not have been given back yet.
        self._current: dict[str, tuple[_File, Hold]] = {}
        # Pins before this moment were written over before they were read.
        self._blind_until = 0
        self._asleep, self._hangs = asleep, hangs
        # Pins that have outlasted their bounds, by worker: what waits for them is excused no longer.
        self._overdue: dict[str, Hold] = {}
        self._stalled: dict[str, int] = {}
        # Which wait of a worker was seen asleep long after the last pin, for pages and at all: what only
        # lacked a processor did not wake up late.
        self._slept: dict[str, int] = {}
        self._hung: dict[str, int] = {}
        # What ended while a pin lasted, until its holder has said that it was still held then.
        self._undecided: list[Wait] = []

    def look(self, now_ns: int) -> list[Judgement]:
        """Judge what has ended since the last look, and what has stalled."""
        ended = [wait for name in self._invalidators for wait in self._ended(name)]
        flying = [wait for name in self._invalidators if (wait := self._in_flight(name))]
        # Read after the waits, so that a pin that was still held then is known to have been.
        for name in self._holders:
            self._read_holds(name)
        undecided, judged = [], []
        for wait in (*self._undecided, *(wait for wait in ended if not self._is_known(wait))):
            holds = self._overlapping(wait, wait.end)
            if self._must_be_told(wait, holds):
                undecided.append(wait)
            else:
                judged.append(self._judge_ended(wait, holds))
        self._undecided = undecided
        for wait in flying:
            judgement = self._judge_in_flight(wait, now_ns)
            if judgement is not None and not self._is_known(wait):
                self._stalled[wait.worker] = wait.number
                judged.append(judgement)
        return judged

    def look_for_overdue(self, now_ns: int) -> list[Overdue]:
        """Return the pins that have outlasted their bounds since the last look, each once.

        One whose holder only lacks a processor is none: it is for the kernel to give a pin back.
        """
        found = []
        for name, ((region, place), hold) in self._current.items():
            seen, known = self._holders[name], self._overdue.get(name)
            # What the ledger says of a canary's pin is not true, on purpose.
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
        """Return what this run tries against pins and no expectation speaks of."""
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
        """Return how many operations and holds of each worker were judged."""
        seen = {**self._invalidators, **self._holders}
        return {
            name: (entry.ended, entry.holds)
            for name, entry in seen.items()
            if entry.block.block.kind != CANARY
        }

    def _bound(self, hold: Hold) -> int:
        """Return how long a pin may last, or take to be taken."""
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
            self._blind_until = max(self._blind_until, rows[0][1].take_before)
        self._current.pop(name, None)
        for file, hold in rows:
            if hold.release_after:
                self._holds[file][name].append(hold)
            else:
                self._current[name] = (file, hold)
        seen.holds = begun - 1 if name in self._current else begun

    def _overlapping(self, wait: Wait, end: int) -> tuple[Hold, ...]:
        """Return the pins of the file that may have lasted between its start and `end`.

        Those that were given back come first, the last of them last.
        """
        file = (wait.region, wait.place)
        before = []
        for holds in self._holds[file].values():
            for hold in reversed(holds):
                # What this holder gave back before that was over even earlier.
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
        since = max(wait.start, self._blind_until, *(hold.release_after for hold in holds))
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
        """Judge what goes on: None while it may still wait, or has not waited for too long."""
        holds = self._overlapping(wait, now_ns)
        if wait.end or any(self._excuses(hold, now_ns) for hold in holds):
            return None
        since = max(wait.start, self._blind_until, *(hold.release_after for hold in holds))
        excess = self._clock.between(since, now_ns)
        pid = self._invalidators[wait.worker].block.get("pid")
        if excess > self._late_ns // 2 and self._asleep(pid):
            self._slept[wait.worker] = wait.number
        hangs = excess > self._stall_ns // 2 and self._hangs(pid)
        if hangs:
            self._hung[wait.worker] = wait.number
        # One that is ready to run lacks a processor, but none for as long as that.
        if excess <= self._stall_ns or not (hangs or excess > self._stall_ns + _STARVED_NS):
            return None
        last = max(holds, key=lambda hold: hold.release_after, default=None)
        behind = next((hold for hold in holds if self._is_overdue(hold)), None)
        return Judgement(wait, holds, last, _tried(wait, holds), excess, Violation.STALL, behind)

    def _was_asleep(self, wait: Wait, *seen: dict[str, int]) -> bool:
        return any(asleep.get(wait.worker) == wait.number for asleep in seen)

    def _must_be_told(self, wait: Wait, holds: tuple[Hold, ...]) -> bool:
        """Say whether it ended while a pin lasted whose holder has still to tell for how long."""
        return any(hold.may_be_pinned_at(wait.start) and self._has_to_wait(wait, hold) for hold in holds)

    def _excuses(self, hold: Hold, now_ns: int) -> bool:
        """Say whether a pin is held now. What cannot be taken for seconds is a victim, no cause."""
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
        """Say whether an invalidation owes it to a pin not to end before that is given back."""
        if wait.result or not hold.certain:
            return False
        cell = Cell(wait.operation, RegionKind.FS_DAX, hold.interface)
        row = expected(cell, self._release, backing=hold.backing)
        return row is not None and row.waits


def _tried(wait: Wait, holds: Iterable[Hold]) -> Hold | None:
    """Return the pin of a trial: one of a file that nobody else touches, held when it began."""
    for hold in holds:
        until = hold.release_before or hold.release_after or wait.start + 1
        if hold.certain and (hold.take_after or hold.take_before) <= wait.start < until:
            return hold
    return None


def _line(name: str, seen: _Seen, number: int) -> Wait | None:
    """Return an invalidation from the flight recorder; None for another operation."""
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
