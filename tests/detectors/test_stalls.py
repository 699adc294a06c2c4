# SPDX-License-Identifier: GPL-2.0-only
"""The stall detector: it judges what the workers' own blocks say of their waits and pins.

The blocks are written here as workers write them; the times are made up, the kernel is not modelled.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soak.detectors.stalls.judge import Judgement, Overdue, StallDetector
from soak.ledger.schema import HOLDS_LENGTH
from soak.model.vocabulary import INVALIDATIONS, SHORT_PINS, Interface, Operation, Violation
from tests.detectors.stall_support import (
    HOLDER,
    INVALIDATOR,
    PLACE,
    begin_wait,
    end_wait,
    give_back,
    pair_ledger,
    plan_pairs,
    write_hold,
)
from tests.support.soak import deterministic

if TYPE_CHECKING:
    from pathlib import Path

    from soak.ledger.writer import BlockWriter

MS = 1_000_000
LATE, STALL = 500, 2000
# How long a device may take for a request, and a task that is ready to run for a processor.
REQUEST = STARVED = 30_000
START = 10_000
INTERRUPTED = 4
BEFORE_COUNTING, COUNTED = (6, 12), (6, 15)


class Ticking:
    """A machine that never stands still."""

    def between(self, start_ns: int, end_ns: int) -> int:
        return max(end_ns - start_ns, 0)


@dataclass
class Scene:
    """The ledger of one pair, and a detector that looks at it. Times are milliseconds."""

    directory: Path
    release: tuple[int, int] = BEFORE_COUNTING
    blocks: dict[str, BlockWriter] = field(default_factory=dict)
    # Whether the invalidator sleeps for pages when it is looked at.
    asleep: bool = True
    # Whether whoever is looked at sleeps in the kernel.
    hanging: bool = True
    pairs: int = 1

    def __post_init__(self) -> None:
        plans = plan_pairs(self.pairs)
        name = f"ledger-{len(list(self.directory.iterdir()))}"
        ledger = pair_ledger(self.directory / name, plans)
        self.blocks = {plan.name: ledger.block(plan.name) for plan in plans}
        self.detector = StallDetector(
            {plan.name: (plan.role, self.blocks[plan.name], ("files",)) for plan in plans},
            Ticking(),
            self.release,
            late_ns=LATE * MS,
            stall_ns=STALL * MS,
            asleep=lambda _pid: self.asleep,
            hangs=lambda _pid: self.hanging,
        )

    def begin(self, operation: Operation, start: int = START, place: int = PLACE) -> None:
        begin_wait(self.blocks[INVALIDATOR], operation, start * MS, place)

    def end(self, moment: int, result: int = 0) -> None:
        end_wait(self.blocks[INVALIDATOR], moment * MS, result)

    def hold(
        self,
        take_before: int,
        take_after: int = 0,
        release_before: int = 0,
        release_after: int = 0,
        interface: Interface = Interface.VMSPLICE,
        *,
        mapped: bool = True,
        certain: bool = True,
        place: int = PLACE,
        holder: str = HOLDER,
    ) -> None:
        times = (take_before * MS, take_after * MS, release_before * MS, release_after * MS)
        write_hold(self.blocks[holder], times, interface, mapped=mapped, certain=certain, place=place)

    def release_hold(self, before: int, after: int) -> None:
        give_back(self.blocks[HOLDER], before * MS, after * MS)

    def look(self, now: int) -> list[Judgement]:
        return self.detector.look(now * MS)

    def overdue(self, now: int) -> list[Overdue]:
        self.detector.look(now * MS)
        return self.detector.look_for_overdue(now * MS)

    def one(self, now: int) -> Judgement:
        (judgement,) = self.look(now)
        return judgement


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.mark.parametrize("operation", INVALIDATIONS)
def test_wait_that_ends_with_its_pin_is_correct(scene: Scene, operation: Operation) -> None:
    scene.hold(START - 10, START - 9, START + 50, START + 51)
    scene.begin(operation)
    scene.end(START + 53)
    judgement = scene.one(START + 60)
    assert judgement.violation is None
    assert judgement.woken
    assert judgement.excess == 2 * MS
    assert judgement.tried is not None
    assert scene.look(START + 10_000) == []


@pytest.mark.parametrize(
    ("excess", "violation"),
    [
        (LATE, None),
        (LATE + 1, Violation.LATE_WAKEUP),
        (STALL, Violation.LATE_WAKEUP),
        (STALL + 1, Violation.STALL),
    ],
)
def test_ended_wait_is_judged_by_its_excess(
    scene: Scene, excess: int, violation: Violation | None
) -> None:
    scene.hold(START - 10, START - 9, START + 50, START + 51)
    scene.begin(Operation.TRUNCATE_ZERO)
    assert scene.look(START + 51 + LATE // 2 + 1) == []
    scene.end(START + 51 + excess)
    assert scene.one(START + 60).violation is violation


def test_runnable_task_is_not_late(scene: Scene) -> None:
    """On a machine that is short of processors a woken task may take long to run."""
    scene.asleep = False
    scene.hold(START - 10, START - 9, START + 50, START + 51)
    scene.begin(Operation.TRUNCATE_ZERO)
    assert scene.look(START + 51 + LATE) == []
    scene.end(START + 51 + LATE + 100)
    assert scene.one(START + 52 + LATE + 100).violation is None


def test_runnable_task_is_not_stalled(scene: Scene) -> None:
    scene.asleep = scene.hanging = False
    scene.hold(START - 10, START - 9, START + 50, START + 51)
    scene.begin(Operation.TRUNCATE_ZERO)
    assert scene.look(START + 51 + STALL + STARVED) == []
    scene.end(START + 51 + STALL + STARVED)
    assert scene.one(START + 52 + STALL + STARVED).violation is None


def test_endlessly_runnable_task_is_a_stall(scene: Scene) -> None:
    scene.asleep = scene.hanging = False
    scene.begin(Operation.TRUNCATE_ZERO)
    assert scene.look(START + STALL + STARVED) == []
    assert scene.one(START + STALL + STARVED + 1).violation is Violation.STALL


def test_task_blocked_elsewhere_is_a_stall(scene: Scene) -> None:
    """Not for pages, but behind a lock that somebody does not give back."""
    scene.asleep = False
    scene.begin(Operation.TRUNCATE_ZERO)
    assert scene.look(START + STALL // 2 + 1) == []
    scene.end(START + STALL + 1)
    assert scene.one(START + STALL + 2).violation is Violation.STALL


def test_held_pin_excuses_a_wait(scene: Scene) -> None:
    scene.hold(START - 10, START - 9)
    scene.begin(Operation.PUNCH_HOLE)
    assert scene.look(START + 3_600_000) == []
    scene.release_hold(START + 3_600_000, START + 3_600_001)
    assert scene.look(START + 3_600_001 + STALL) == []
    judgement = scene.one(START + 3_600_002 + STALL)
    assert judgement.violation is Violation.STALL
    assert judgement.excess == (STALL + 1) * MS


@pytest.mark.parametrize(
    ("interface", "taken", "bound"),
    [
        (Interface.VMSPLICE, True, STALL),
        (Interface.PROCESS_VM, True, STALL),
        (Interface.O_DIRECT, True, STALL + REQUEST),
        (Interface.VMSPLICE, False, STALL + REQUEST),
    ],
)
def test_pin_excuses_a_wait_within_its_bound(
    scene: Scene, interface: Interface, bound: int, *, taken: bool
) -> None:
    since = START - 9 if taken else START - 10
    scene.hold(START - 10, since if taken else 0, interface=interface)
    scene.begin(Operation.PUNCH_HOLE)
    assert scene.overdue(since + bound) == []
    (found,) = scene.overdue(since + bound + 1)
    assert (found.hold.interface, found.place, found.lasted, found.bound) == (
        interface,
        PLACE,
        (bound + 1) * MS,
        bound * MS,
    )
    assert scene.detector.look_for_overdue((since + bound + 2) * MS) == []


def test_wait_for_an_overdue_pin_is_a_stall(scene: Scene) -> None:
    scene.hold(START - 10, START - 9)
    scene.begin(Operation.PUNCH_HOLE)
    assert scene.look(START + STALL) == []
    assert len(scene.detector.look_for_overdue((START + STALL) * MS)) == 1
    judgement = scene.one(START + STALL + 1)
    assert (judgement.violation, judgement.excess) == (Violation.STALL, (STALL + 1) * MS)
    assert judgement.behind is not None
    assert judgement.behind.take_after == (START - 9) * MS


def test_holder_without_a_cpu_is_not_overdue(scene: Scene) -> None:
    scene.hanging = False
    scene.hold(START - 10, START - 9)
    scene.begin(Operation.PUNCH_HOLE)
    assert scene.overdue(START + 3_600_000) == []
    assert scene.look(START + 3_600_000) == []


def test_next_pin_of_an_overdue_holder_excuses(scene: Scene) -> None:
    scene.hold(START - 10, START - 9)
    assert len(scene.overdue(START + STALL)) == 1
    scene.release_hold(START + STALL + 1, START + STALL + 2)
    later = START + 2 * STALL
    scene.hold(later - 10, later - 9)
    scene.begin(Operation.PUNCH_HOLE, later)
    assert scene.overdue(later + 100) == []
    assert scene.look(later + STALL - 10) == []
    assert len(scene.overdue(later + STALL)) == 1


def test_stall_counts_once(scene: Scene) -> None:
    scene.hold(START - 10, START - 9, START, START + 1)
    scene.begin(Operation.TRUNCATE_DOWN)
    assert scene.one(START + 3000).violation is Violation.STALL
    assert scene.look(START + 4000) == []
    scene.end(START + 5000, INTERRUPTED)
    assert scene.look(START + 5001) == []
    scene.begin(Operation.TRUNCATE_DOWN, START + 6000)
    scene.end(START + 6001)
    assert scene.one(START + 6002).violation is None


def test_without_a_pin_only_a_stall_is_judged(scene: Scene) -> None:
    """A slow file system is no late wake-up: nothing was there to wait for."""
    scene.begin(Operation.TRUNCATE_ZERO)
    scene.end(START + 1500)
    assert scene.one(START + 1501).violation is None
    scene.begin(Operation.TRUNCATE_ZERO, START + 2000)
    judgement = scene.one(START + 2000 + STALL + 1)
    assert judgement.violation is Violation.STALL
    assert judgement.holds == ()


def test_pin_that_was_never_taken_is_ignored(scene: Scene) -> None:
    """The file was cut short first: what takes its time then does not take it for a pin."""
    scene.hold(START + 1, 0, 0, START + 1)
    scene.begin(Operation.TRUNCATE_UP)
    scene.end(START + LATE + 100)
    judgement = scene.one(START + LATE + 200)
    assert judgement.violation is None
    assert judgement.holds == ()


@pytest.mark.parametrize(
    ("hold", "after"), [((-10, -9, 5, 6), False), ((-10, 2, 5, 6), True), ((-10, 0, 0, 6), True)]
)
def test_pin_may_be_taken_during_a_wait(
    scene: Scene,
    hold: tuple[int, int, int, int],
    after: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    before, taken, releasing, released = (START + moment if moment else 0 for moment in hold)
    scene.hold(before, taken, releasing, released)
    scene.begin(Operation.TRUNCATE_ZERO)
    scene.end(START + 8)
    (found,) = scene.one(START + 9).holds
    assert found.may_be_taken_after(START * MS) is after


def test_a_pin_of_another_file_is_no_excuse(scene: Scene) -> None:
    scene.hold(START - 10, START - 9, place=PLACE + 1)
    scene.begin(Operation.TRUNCATE_ZERO)
    assert scene.one(START + STALL + 1).violation is Violation.STALL


def test_blocked_pin_is_no_excuse(scene: Scene) -> None:
    """A holder that has been at it for as long as the truncate waits may wait for the truncate."""
    scene.hold(START + 1, certain=False)
    scene.begin(Operation.TRUNCATE_ZERO)
    assert scene.look(START + STALL) == []
    assert scene.one(START + STALL + 2).violation is Violation.STALL


def test_transfer_is_certain_until_last_observed(scene: Scene) -> None:
    """A holder that gets no processor does not see that the device has let the pages go."""
    scene.hold(START - 10, START - 9, START - 9, 0, Interface.O_DIRECT)
    scene.begin(Operation.TRUNCATE_ZERO)
    scene.end(START + 5)
    assert scene.one(START + 6).violation is None


@pytest.mark.parametrize("interface", SHORT_PINS)
def test_wait_that_ends_during_a_pin_is_early(scene: Scene, interface: Interface) -> None:
    scene.hold(START - 10, START - 9, interface=interface)
    scene.begin(Operation.TRUNCATE_ZERO)
    scene.end(START + 5)
    # The holder lives to tell that it held the pages all the time.
    assert scene.look(START + 6) == []
    scene.release_hold(START + 20, START + 21)
    judgement = scene.one(START + 22)
    assert judgement.violation is Violation.EARLY_TRUNCATE
    assert judgement.last is not None
    assert judgement.last.interface is interface
    assert scene.look(START + 23) == []


def test_killed_holders_pin_proves_no_early_end(scene: Scene) -> None:
    """The kernel gives it back as the process dies: when that was, nobody has noted."""
    scene.hold(START - 10, START - 9)
    scene.begin(Operation.TRUNCATE_ZERO)
    scene.end(START + 5)
    assert scene.look(START + 6) == []
    scene.release_hold(0, START + 40)
    assert scene.one(START + 41).violation is None


@pytest.mark.parametrize(
    ("hold", "why"),
    [
        ((START + 1, START + 2, 0, 0), "it was taken after the wait had begun"),
        ((START - 10, 0, 0, 0), "when it was taken is not known"),
        ((START - 10, START - 9, START + 4, 0), "it was just being given back"),
        ((START - 10, START - 9, 0, START + 9), "when it was given back is not known"),
    ],
)
def test_only_a_certain_pin_proves_early_end(
    scene: Scene, hold: tuple[int, int, int, int], why: str
) -> None:
    scene.hold(*hold)
    scene.begin(Operation.TRUNCATE_ZERO)
    scene.end(START + 5)
    assert scene.one(START + 10).violation is None, why


def test_uncertain_pin_proves_no_early_end(scene: Scene) -> None:
    scene.hold(START - 10, START - 9, certain=False)
    scene.begin(Operation.TRUNCATE_ZERO)
    scene.end(START + 5)
    judgement = scene.one(START + 6)
    assert judgement.violation is None
    assert judgement.tried is None


@pytest.mark.parametrize("operation", INVALIDATIONS)
@pytest.mark.parametrize(
    ("release", "violation"), [(BEFORE_COUNTING, None), (COUNTED, Violation.EARLY_TRUNCATE)]
)
def test_unmapped_file_is_judged_by_its_expectation(
    tmp_path: Path, operation: Operation, release: tuple[int, int], violation: Violation | None
) -> None:
    scene = Scene(tmp_path, release)
    scene.hold(START - 10, START - 9, START + 20, START + 21, mapped=False)
    scene.begin(operation)
    scene.end(START + 5)
    assert scene.one(START + 22).violation is violation


def test_an_interrupted_wait_is_neither_early_nor_late(scene: Scene) -> None:
    scene.hold(START - 10, START - 9)
    scene.begin(Operation.TRUNCATE_ZERO)
    scene.end(START + 5, INTERRUPTED)
    assert scene.one(START + 6).violation is None


def test_overwritten_pins_excuse_earlier_waits(scene: Scene) -> None:
    scene.begin(Operation.TRUNCATE_ZERO)
    for number in range(HOLDS_LENGTH + 1):
        scene.hold(START + 10 * number, 0, 0, START + 10 * number + 1, certain=False, place=0)
    oldest = START + 10 * 2
    assert scene.look(oldest + STALL) == []
    assert scene.one(oldest + STALL + 1).excess == (STALL + 1) * MS


def test_every_combination_of_a_run_is_covered(scene: Scene) -> None:
    assert scene.detector.uncovered() == []


# What each of three holders does, one behind the other: it waits, then holds, in milliseconds.
PINS = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 200)), max_size=6)


@given(st.lists(PINS, min_size=3, max_size=3), st.integers(0, 4000))
@deterministic
def test_excess_counts_from_the_last_overlapping_pin(
    tmp_path_factory: pytest.TempPathFactory, pins: list[list[tuple[int, int]]], length: int
) -> None:
    scene = Scene(tmp_path_factory.mktemp("scene"), pairs=len(pins))
    released = []
    for number, spans in enumerate(pins):
        moment = START - 300
        for pause, duration in spans:
            start, end = moment + pause, moment + pause + duration
            scene.hold(start, 0, 0, end, certain=False, holder=f"trial-holder-{number}")
            if start < START + length and end > START:
                released.append(end)
            moment = end
    scene.begin(Operation.ZERO_RANGE)
    scene.end(START + length)
    judgement = scene.one(START + 10_000)
    assert [hold.release_after for hold in judgement.holds] == [end * MS for end in sorted(released)]
    assert judgement.excess == max(START + length - max([START, *released]), 0) * MS
