# SPDX-License-Identifier: GPL-2.0-only
"""Trials: both workers of a pair draw the same ones, and every pairing has its turn."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from soak.model.vocabulary import INVALIDATIONS, SHORT_PINS, Backing, Interface, Operation, Role
from soak.regions.fs_dax import TRIAL_FILE_SIZE
from soak.regions.pages import PAGE_SIZE
from soak.workload.pins.methods import INTO_MEMORY, METHODS, available
from soak.workload.trials import TrialPlan, pairings
from tests.support.soak import deterministic, planned

if TYPE_CHECKING:
    from soak.workload.worker_plan import WorkerPlan

seeds = st.integers(0, 2**63 - 1)
numbers = st.integers(0, 100_000)
transfers = st.booleans()


def pair(seed: int, *, transfers: bool = True) -> tuple[WorkerPlan, WorkerPlan]:
    plans = planned(seed=seed, trials=1, transfers=transfers)
    holder, invalidator = plans
    assert (holder.role, invalidator.role) == (Role.HOLDER, Role.INVALIDATOR)
    return holder, invalidator


@given(seeds, numbers, transfers)
@deterministic
def test_a_trial_depends_on_its_number_alone(seed: int, number: int, transfers: bool) -> None:  # noqa: FBT001 - drawn
    methods = available(transfers=transfers)
    fresh, used = TrialPlan(seed, "trial-0", methods), TrialPlan(seed, "trial-0", methods)
    for earlier in (number + 1, 0, number // 2):
        used.trial(earlier)
    assert fresh.trial(number) == used.trial(number)


@given(seeds, numbers, transfers)
@deterministic
def test_a_trial_stays_within_file_and_method(
    seed: int,
    number: int,
    transfers: bool,  # noqa: FBT001 - drawn
) -> None:
    trial = TrialPlan(seed, "trial-0", available(transfers=transfers)).trial(number)
    method = METHODS[trial.method]
    end = trial.offset + trial.length
    assert 0 < trial.length <= method.most_pages * PAGE_SIZE
    assert PAGE_SIZE <= trial.offset < end <= TRIAL_FILE_SIZE
    assert not trial.into or method.into
    match trial.operation:
        case Operation.TRUNCATE_DOWN:
            assert 0 < trial.taken_offset < end
        case Operation.TRUNCATE_UP:
            assert trial.taken_offset > end
        case Operation.PUNCH_HOLE | Operation.ZERO_RANGE:
            assert 0 < trial.taken_length <= end - trial.taken_offset
        case Operation.UNLINK:
            # A file that somebody maps would stay, and with it its blocks.
            assert method.backing is Backing.UNMAPPED
        case _:
            assert (trial.taken_offset, trial.taken_length) == (0, 0)


@given(seeds)
@deterministic
def test_no_method_writes_into_unmapped_memory(seed: int) -> None:
    """On a kernel that does not wait for it, its blocks may be another file's by then."""
    holder, _ = pair(seed)
    for number in range(100):
        _, hold = holder.trial_choices(number)
        if METHODS[hold.method].backing is Backing.UNMAPPED:
            assert not hold.access & INTO_MEMORY


@given(seeds, st.integers(0, 50))
@deterministic
def test_each_round_runs_every_pairing_once(seed: int, turn: int) -> None:
    methods = available(transfers=True)
    expected = Counter(pairings(methods))
    plan = TrialPlan(seed, "trial-0", methods)
    first = turn * len(expected)
    trials = [plan.trial(number) for number in range(first, first + len(expected))]
    tried = Counter((trial.operation, METHODS[trial.method].interface) for trial in trials)
    assert tried == expected


def test_pairings_cover_every_operation_and_fitting_pin() -> None:
    missing = {(Operation.UNLINK, Interface.PROCESS_VM)}
    every = {(operation, pin) for operation in INVALIDATIONS for pin in SHORT_PINS}
    assert set(pairings(available(transfers=True))) == every - missing
    without = {(operation, pin) for operation, pin in every if pin is not Interface.O_DIRECT}
    assert set(pairings(available(transfers=False))) == without - missing


@given(seeds, numbers)
@deterministic
def test_both_workers_draw_the_same_trial(seed: int, number: int) -> None:
    holder, invalidator = pair(seed)
    make, hold = holder.trial_choices(number)
    invalidate, empty = invalidator.trial_choices(number)
    assert holder.files == invalidator.files
    assert len({choice.place for choice in (make, hold, invalidate, empty)}) == 1
    assert hold.method == invalidate.method
    # What is pinned was written before.
    assert (make.offset, make.length) == (hold.offset, hold.length)
    assert (empty.operation, empty.offset) == (Operation.TRUNCATE_ZERO, 0)
    for plan, choices in ((holder, (make, hold)), (invalidator, (invalidate, empty))):
        for choice in choices:
            assert plan.cells[choice.cell].operation is choice.operation
    assert [choice.number for choice in (make, hold)] == [2 * number, 2 * number + 1]


def test_trial_files_are_exclusive() -> None:
    plans = planned(mappers=2, invalidators=1, holders=1, trials=3, transfers=True)
    files = {plan.pair: plan.files for plan in plans if plan.pair}
    assert len(set(files.values())) == len(files) == 3
    crowd = {file for plan in plans if not plan.pair for file in plan.files}
    assert not crowd & {file for own in files.values() for file in own}
