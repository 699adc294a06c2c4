# SPDX-License-Identifier: GPL-2.0-only
"""What follows a stall: journal, counts, signals. The workers are real processes that hang in a read.

No kernel stalls here: the ledger is written so that the detector takes a hanging read for a wait.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from soak.detectors.clock import SoakClock
from soak.detectors.probes import ProbeRecord
from soak.detectors.stalls.findings import Explanation, explain
from soak.detectors.stalls.judge import Hold, Judgement, Wait
from soak.detectors.stalls.probe import WakeupAnswer
from soak.ledger.recorder import RECORDER
from soak.model.known_issues import O_DIRECT_LOST_WAKEUP, REMAPPED_PAGE_STALL
from soak.model.vocabulary import Backing, Interface, Operation, VerdictWord, Violation
from tests.detectors.stall_support import (
    ALL_ISSUES,
    HOLDER,
    INVALIDATOR,
    LATE_SECONDS,
    PLACE,
    STALL_SECONDS,
    Desk,
    begin_wait,
    end_wait,
    give_back,
    wait_for,
    write_hold,
)
from tests.detectors.test_probes import ASLEEP, LOST, STARVED, WOKEN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from soak.detectors.stalls.probe import ProbePlace
    from soak.workload.pool import Death

STALLED = STALL_SECONDS + 0.1
# Of soak time: when a signal has not helped for so long, SIGKILL comes, and then the worker is given up.
KILL_SECONDS, WEDGED_SECONDS = 5.0, 10.0
PUNCH = Operation.PUNCH_HOLE
# Looks whether a child has ended, and leaves it to be reaped.
ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT
INCONCLUSIVE = WakeupAnswer(STARVED, WOKEN)
CONFIRMED, REFUTED = WakeupAnswer(LOST, WOKEN), WakeupAnswer(WOKEN, WOKEN)


@pytest.fixture
def make_desk(tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    desks: list[Desk] = []

    def make(**options: object) -> Desk:
        desks.append(Desk(tmp_path, **options))  # type: ignore[arg-type]  # those of Desk
        return desks[-1]

    yield make
    for desk in desks:
        desk.close()


@pytest.fixture
def desk(make_desk: Callable[..., Desk]) -> Desk:
    return make_desk()


def stall(desk: Desk, *, signals: int = 1, deaf: bool = False) -> None:
    """Have the invalidator hang behind a pin that was given back, for as long as a stall takes."""
    desk.pinned_before()
    desk.hang(INVALIDATOR, PUNCH, signals=signals, deaf=deaf)
    desk.given_back()
    desk.skip(STALLED)


def test_a_stall_is_reported_with_its_evidence(desk: Desk) -> None:
    holder = desk.hang(HOLDER, Operation.HOLD)
    desk.pinned_before()
    culprit = desk.hang(INVALIDATOR, PUNCH)
    desk.given_back()
    assert desk.look() == []
    desk.skip(STALLED)
    (found,) = desk.look()
    assert (found["kind"], found["operation"], found["interface"]) == ("stall", PUNCH, "vmsplice")
    assert (found["region_name"], found["count"], found["known_issue"]) == ("files", 1, None)
    assert "kept sleeping after the last pin over vmsplice was released" in found["summary"]
    evidence = found["evidence"]
    assert (evidence["worker"], evidence["file"]) == (INVALIDATOR, PLACE)
    assert evidence["excess_ms"] == STALLED * 1000
    assert (evidence["task"]["pid"], evidence["task"]["state"]) == (culprit.pid, "S")
    assert "pipe" in evidence["task"]["wchan"]
    (victim,) = evidence["behind"]
    assert (victim["worker"], victim["pid"], victim["state"]) == (HOLDER, holder.pid, "S")
    (held,) = evidence["held"]
    assert (held["worker"], held["interface"]) == (HOLDER, "vmsplice")
    assert all(moment < 0 for moment in held["taken"])
    assert all(moment > 0 for moment in held["given_back"])
    assert sorted(evidence["recorders"]) == [HOLDER, INVALIDATOR]
    (line,) = evidence["recorders"][INVALIDATOR]
    assert (line["place"], line["end_ns"]) == (PLACE, 0)
    verdict = desk.verdict()
    assert verdict.verdict is VerdictWord.FAIL
    assert verdict.reasons == (found["summary"],)


def test_only_those_long_in_one_call_are_victims(desk: Desk) -> None:
    """The holder begins when the stall is nearly over."""
    desk.pinned_before()
    desk.hang(INVALIDATOR, PUNCH)
    desk.given_back()
    desk.skip(STALLED)
    desk.hang(HOLDER, Operation.HOLD)
    (found,) = desk.look()
    assert found["evidence"]["behind"] == []


def test_signals_come_until_the_ledger_moves(desk: Desk) -> None:
    stall(desk, signals=3)
    assert len(desk.look()) == 1
    for number in (1, 2):
        desk.wait_for_interruption(INVALIDATOR, number)
        assert desk.events("operation.freed") == []
        assert desk.waits(PUNCH)["stalled"] == 1
        assert desk.look() == []
    wait_for(lambda: desk.invalidator.get("ended") == 1)
    assert desk.look() == []
    (freed,) = desk.events("operation.freed")
    assert (freed["worker"], freed["by"]) == (INVALIDATOR, "a signal")
    assert desk.waits(PUNCH)["stalled"] == 0
    assert RECORDER.line(desk.invalidator.view("recorder"), 0)["result"] == errno.EINTR
    before = desk.signals(INVALIDATOR)
    desk.skip(WEDGED_SECONDS)
    assert desk.look() == []
    assert (desk.signals(INVALIDATOR), desk.pool.worker(INVALIDATOR).abandoned) == (before, 0)
    assert list(desk.pool.reap()) == []


def test_one_operation_counts_once(desk: Desk) -> None:
    stall(desk, signals=2)
    assert len(desk.look()) == 1
    desk.wait_for_interruption(INVALIDATOR, 1)
    desk.skip(0.5)
    assert desk.look() == []
    wait_for(lambda: desk.invalidator.get("ended") == 1)
    assert desk.look() == []
    assert desk.counted(Violation.STALL) == 1
    waits = desk.waits(PUNCH)
    assert (waits["stalls"], waits["stalled_ns"]) == (1, int((STALLED + 0.5) * 1e9))
    assert desk.watch.completed()[f"{PUNCH} fs-dax vmsplice"] == 1
    assert len(desk.verdict().violations) == 1


def test_what_ignores_signals_is_killed(desk: Desk) -> None:
    stall(desk, deaf=True)
    desk.look()
    desk.skip(KILL_SECONDS - 0.1)
    desk.look()
    assert list(desk.pool.reap()) == []
    desk.skip(0.2)
    desk.look()
    deaths: list[Death] = []

    def died() -> bool:
        deaths.extend(desk.pool.reap())
        return bool(deaths)

    wait_for(died)
    assert (deaths[0].worker, deaths[0].signal_number) == (INVALIDATOR, signal.SIGKILL)
    desk.look()
    (freed,) = desk.events("operation.freed")
    assert (freed["by"], freed["seconds"]) == ("SIGKILL", KILL_SECONDS + 0.1)
    assert (desk.waits(PUNCH)["stalled"], desk.events("worker.wedged")) == (0, [])


def test_what_survives_sigkill_is_given_up(desk: Desk) -> None:
    """A dead process that is not reaped stands for one that SIGKILL does not end."""
    stall(desk, deaf=True)
    desk.look()
    worker = desk.pool.worker(INVALIDATOR)
    pid = worker.pid
    desk.skip(WEDGED_SECONDS + 0.1)
    desk.look()
    wait_for(lambda: os.waitid(os.P_PID, pid, ENDED) is not None)
    ended = os.waitid(os.P_PID, pid, ENDED)
    assert ended is not None
    assert ended.si_status == signal.SIGKILL
    assert desk.events("worker.wedged") == []
    desk.look()
    (wedged,) = desk.events("worker.wedged")
    assert (wedged["worker"], wedged["level"], wedged["task"]["pid"]) == (INVALIDATOR, "error", pid)
    assert desk.block.get("wedged", *desk.block.index("wedged", INVALIDATOR)) == 1
    assert (desk.invalidator.get("generation"), desk.waits(PUNCH)["stalled"]) == (1, 0)
    assert worker.pid not in {0, pid}
    wait_for(lambda: desk.invalidator.get("pid") == worker.pid)
    desk.skip(WEDGED_SECONDS)
    assert desk.look() == []
    assert len(desk.events("worker.wedged")) == 1


def test_a_worker_that_dies_meanwhile_is_free(desk: Desk) -> None:
    stall(desk, deaf=True)
    desk.look()
    os.kill(desk.pool.worker(INVALIDATOR).pid, signal.SIGKILL)
    wait_for(lambda: list(desk.pool.reap()))
    desk.skip(WEDGED_SECONDS)
    desk.look()
    (freed,) = desk.events("operation.freed")
    assert freed["by"] == "the exit of its process"
    assert (desk.waits(PUNCH)["stalled"], desk.events("worker.wedged")) == (0, [])


def test_a_holder_that_hangs_is_reported_and_freed(desk: Desk) -> None:
    desk.hang(HOLDER, Operation.HOLD)
    desk.pinned_before()
    desk.skip(STALLED)
    (found,) = desk.look()
    assert (found["kind"], found["operation"], found["interface"]) == ("stall", "hold", "vmsplice")
    assert f"lasts for more than {STALL_SECONDS:g} s" in found["summary"]
    assert found["evidence"]["excess_ms"] == pytest.approx((STALLED - STALL_SECONDS) * 1000)
    assert found["evidence"]["task"]["state"] == "S"
    wait_for(lambda: desk.holder.get("ended") == 1)
    assert desk.look() == []
    assert desk.events("operation.freed")[0]["worker"] == HOLDER
    assert desk.verdict().verdict is VerdictWord.FAIL


def test_an_endless_pin_explains_what_waits_for_it(desk: Desk) -> None:
    desk.hang(HOLDER, Operation.HOLD, deaf=True)
    desk.pinned_before()
    desk.hang(INVALIDATOR, PUNCH)
    desk.skip(STALLED)
    assert [found["operation"] for found in desk.look()] == ["hold"]
    (found,) = desk.look()
    assert "waits for a pin over vmsplice that its holder cannot release" in found["summary"]
    assert found["evidence"]["held"][0]["given_back"] == [None, None]


def test_a_stall_that_has_ended_frees_nothing(desk: Desk) -> None:
    """There is no task to look at and none to free, and what is in a call does not wait behind it."""
    desk.hang(HOLDER, Operation.HOLD)
    desk.pinned_before()
    worker = desk.hang(INVALIDATOR, PUNCH)
    desk.given_back()
    desk.skip(STALLED - 0.5)
    assert desk.look() == []
    desk.skip(0.5)
    desk.pool.nudge(worker)
    wait_for(lambda: desk.invalidator.get("ended") == 1)
    (found,) = desk.look()
    assert (found["kind"], found["evidence"]["task"], found["evidence"]["behind"]) == ("stall", {}, [])
    assert (desk.events("operation.freed"), desk.waits(PUNCH)["stalled"]) == ([], 0)


def test_an_early_end_fails_the_run(desk: Desk) -> None:
    desk.pinned_before()
    now = time.monotonic_ns()
    begin_wait(desk.invalidator, PUNCH, now)
    end_wait(desk.invalidator, now + 1)
    give_back(desk.holder, now + 2, now + 3)
    (found,) = desk.look()
    assert found["kind"] == "early-truncate"
    assert "returned before a pin over vmsplice was released" in found["summary"]
    assert desk.waits(PUNCH) == {"stalls": 0, "stalled": 0, "stalled_ns": 0}
    assert desk.verdict().verdict is VerdictWord.FAIL


def test_a_canary_is_found_and_in_no_counts(desk: Desk) -> None:
    worker = desk.hang(INVALIDATOR, PUNCH)
    now = time.monotonic_ns()
    desk.canary_invalidator.set("pid", worker.pid)
    write_hold(desk.canary_holder, (now - 9, now - 8, now + 1, now + 2))
    begin_wait(desk.canary_invalidator, Operation.TRUNCATE_ZERO, now)
    desk.pool.nudge(worker)
    wait_for(lambda: desk.invalidator.get("ended") == 1)
    sleeper = desk.hang(HOLDER, Operation.HOLD)
    desk.canary_invalidator.set("pid", sleeper.pid)
    desk.skip(STALLED)
    assert desk.look() == []
    (canary,) = desk.reporter.take_canaries()
    assert (canary.kind, canary.operation) == (Violation.STALL, Operation.TRUNCATE_ZERO)
    assert canary.evidence["worker"] == "canary-invalidator"
    assert [held["interface"] for held in canary.evidence["held"]] == ["vmsplice"]
    assert desk.waits(Operation.TRUNCATE_ZERO) == {"stalls": 0, "stalled": 0, "stalled_ns": 0}
    assert sum(desk.block.view("trials")) == sum(desk.block.view("violations")) == 0
    desk.skip(WEDGED_SECONDS)
    desk.look()
    # It frees itself.
    assert (desk.signals(HOLDER), desk.events("operation.freed")) == (0, [])


def test_a_canary_pin_that_lasts_is_no_finding(desk: Desk) -> None:
    worker = desk.hang(HOLDER, Operation.HOLD)
    desk.canary_holder.set("pid", worker.pid)
    now = time.monotonic_ns()
    write_hold(desk.canary_holder, (now - 9, now - 8, 0, 0))
    desk.skip(WEDGED_SECONDS)
    assert desk.look() == []
    assert desk.reporter.take_canaries() == []


@pytest.mark.parametrize(("beats", "kinds"), [(1, []), (100, ["stall"])])
def test_a_supervisor_that_stood_still_makes_no_stall(
    make_desk: Callable[..., Desk], beats: int, kinds: list[str]
) -> None:
    """Ten seconds pass, in which the supervisor beats regularly, or once when they are over."""
    clock = SoakClock()
    desk = make_desk(clock=clock)
    worker = desk.hang(HOLDER, Operation.HOLD)
    desk.invalidator.set("pid", worker.pid)
    now = time.monotonic_ns()
    start = now - 10_000_000_000
    clock.beat(start)
    for number in range(1, beats + 1):
        clock.beat(start + (now - start) * number // beats)
    begin_wait(desk.invalidator, PUNCH, start + 1)
    assert [found["kind"] for found in desk.look()] == kinds


def late_wakeup(desk: Desk) -> None:
    """Write a wait that woke late after a pin that was taken meanwhile, as remapped-page-stall has it."""
    begin_wait(desk.invalidator, PUNCH, time.monotonic_ns())
    taken = time.monotonic_ns()
    write_hold(desk.holder, (taken, taken + 1, taken + 2, taken + 3))
    desk.skip(LATE_SECONDS * 0.7)
    desk.look()
    desk.skip(LATE_SECONDS * 0.7)
    end_wait(desk.invalidator, time.monotonic_ns())


class Probing:
    """A probe whose answers are given, one after the other."""

    def __init__(self, *answers: WakeupAnswer) -> None:
        self.answers = list(answers)

    def __call__(self, _place: ProbePlace) -> WakeupAnswer:
        return self.answers.pop(0)


@pytest.mark.parametrize(
    ("answer", "known", "verdict"),
    [(CONFIRMED, REMAPPED_PAGE_STALL.name, VerdictWord.PASS), (REFUTED, None, VerdictWord.FAIL)],
)
def test_a_confirmed_issue_explains_what_it_predicts(
    make_desk: Callable[..., Desk], answer: WakeupAnswer, known: str | None, verdict: VerdictWord
) -> None:
    desk = make_desk(asleep=lambda _: True, probes={REMAPPED_PAGE_STALL.name: Probing(answer)})
    desk.watch.probe()
    late_wakeup(desk)
    (found,) = desk.look()
    assert (found["kind"], found["known_issue"], found["undecided"]) == ("late-wakeup", known, None)
    assert desk.counted(Violation.LATE_WAKEUP, known or "none") == 1
    assert desk.verdict().verdict is verdict


@pytest.mark.parametrize(
    ("answer", "known", "verdict"),
    [
        (CONFIRMED, REMAPPED_PAGE_STALL.name, VerdictWord.PASS),
        (REFUTED, "none", VerdictWord.FAIL),
        (INCONCLUSIVE, None, VerdictWord.UNKNOWN),
    ],
)
def test_an_undecided_violation_waits_for_its_probe(
    make_desk: Callable[..., Desk], answer: WakeupAnswer, known: str | None, verdict: VerdictWord
) -> None:
    probing = Probing(INCONCLUSIVE, answer)
    desk = make_desk(asleep=lambda _: True, probes={REMAPPED_PAGE_STALL.name: probing})
    desk.watch.probe()
    assert desk.watch.undecided
    late_wakeup(desk)
    (found,) = desk.look()
    assert (found["known_issue"], found["undecided"]) == (None, REMAPPED_PAGE_STALL.name)
    assert sum(desk.block.view("violations")) == 0
    desk.watch.probe()
    assert desk.watch.undecided is (known is None)
    assert sum(desk.block.view("violations")) == (known is not None)
    if known is not None:
        assert desk.counted(Violation.LATE_WAKEUP, known) == 1
        # It is decided: no probe is made any more.
        desk.watch.probe()
    assert probing.answers == []
    assert desk.verdict().verdict is verdict


def test_an_issue_that_is_turned_off_explains_nothing(make_desk: Callable[..., Desk]) -> None:
    probes = {REMAPPED_PAGE_STALL.name: Probing(INCONCLUSIVE)}
    desk = make_desk(asleep=lambda _: True, probes=probes, applying=())
    desk.watch.probe()
    assert not desk.watch.undecided
    late_wakeup(desk)
    (found,) = desk.look()
    assert (found["known_issue"], found["undecided"]) == (None, None)


def test_where_truncate_never_waits_probes_are_inconclusive(desk: Desk) -> None:
    """The real probes, on a file system that is not DAX."""
    desk.watch.probe()
    assert desk.watch.undecided
    (probed,) = desk.events("known-issue.probed")  # there is no slow device for the other
    assert (probed["known_issue"], probed["result"]) == (REMAPPED_PAGE_STALL.name, "inconclusive")
    assert (probed["waited"], probed["control"]["waited"]) == (False, False)
    assert desk.verdict().verdict is VerdictWord.UNKNOWN


def test_a_worker_that_does_not_rest_is_freed(desk: Desk) -> None:
    worker = desk.hang(INVALIDATOR, PUNCH)
    desk.watch.free(worker)
    assert desk.look() == []
    wait_for(lambda: desk.invalidator.get("ended") == 1)
    desk.look()
    assert [event["by"] for event in desk.events("operation.freed")] == ["a signal"]
    assert desk.waits(PUNCH) == {"stalls": 0, "stalled": 0, "stalled_ns": 0}


def test_a_worker_in_no_call_is_left_alone(desk: Desk) -> None:
    """It waits for another one, which is freed itself."""
    worker = desk.hang(INVALIDATOR, PUNCH)
    desk.pool.nudge(worker)
    wait_for(lambda: desk.invalidator.get("ended") == 1)
    desk.watch.free(worker)
    desk.skip(WEDGED_SECONDS)
    desk.look()
    assert (desk.events("operation.freed"), list(desk.pool.reap())) == ([], [])


def test_a_worker_being_freed_can_still_stall(desk: Desk) -> None:
    """It did not come to rest, and is then seen to stall in that call."""
    stall(desk, signals=2)
    desk.watch.free(desk.pool.worker(INVALIDATOR))
    assert len(desk.look()) == 1
    assert desk.waits(PUNCH)["stalled"] == 1
    desk.wait_for_interruption(INVALIDATOR, 1)
    desk.look()
    wait_for(lambda: desk.invalidator.get("ended") == 1)
    desk.look()
    assert (desk.waits(PUNCH)["stalled"], len(desk.events("operation.freed"))) == (0, 1)


def test_a_supervisor_that_takes_over_counts_on(desk: Desk) -> None:
    stall(desk, deaf=True)
    desk.look()
    desk.watch.commit()
    read = desk.block.index("read", HOLDER, "holds")
    assert desk.block.get("read", *read) == 1
    assert desk.waits(PUNCH)["stalled"] == 1
    desk.another()
    waits = desk.waits(PUNCH)
    assert (waits["stalls"], waits["stalled"]) == (1, 0)


A_HOLD = Hold(HOLDER, Interface.O_DIRECT, Backing.SHARED, True, False, 1, 2, 20, 21)
A_WAIT = Wait(INVALIDATOR, 0, PUNCH, "files", PLACE, 10, 0, 0)
A_STALL = Judgement(A_WAIT, (A_HOLD,), A_HOLD, A_HOLD, 3_000_000_000, Violation.STALL)
OVER_O_DIRECT = Explanation(Interface.O_DIRECT)
BY_LOST_WAKEUP = Explanation(Interface.O_DIRECT, O_DIRECT_LOST_WAKEUP.name)


@pytest.mark.parametrize(
    ("judgement", "task", "explanation"),
    [
        (A_STALL, ASLEEP, BY_LOST_WAKEUP),
        # It sleeps elsewhere: behind a lock, say.
        (A_STALL, {"state": "D", "stack": ["down_write+0x1/0x2"]}, OVER_O_DIRECT),
        (A_STALL, {}, OVER_O_DIRECT),
        # It waits for a pin that lasts, and no wake-up was lost.
        (replace(A_STALL, behind=A_HOLD), ASLEEP, OVER_O_DIRECT),
        (replace(A_STALL, wait=replace(A_WAIT, end=99)), {}, OVER_O_DIRECT),
        (replace(A_STALL, holds=(), last=None), ASLEEP, Explanation(Interface.NONE)),
    ],
)
def test_only_what_sleeps_for_pages_is_explained(
    desk: Desk, judgement: Judgement, task: dict[str, object], explanation: Explanation
) -> None:
    answers = ProbeRecord(desk.reporter, frozenset(ALL_ISSUES))
    answers.note(O_DIRECT_LOST_WAKEUP.name, CONFIRMED)
    assert explain(judgement, Violation.STALL, task, answers) == explanation
