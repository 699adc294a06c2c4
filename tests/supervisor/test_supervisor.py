# SPDX-License-Identifier: GPL-2.0-only
"""The supervisor, without a kernel to try: real workers, ledger and journal, detectors made for a test.

It runs in a process of its own, as it always does: it masks signals and forks workers.
"""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from soak.detectors.base import Detector
from soak.detectors.canaries.runner import Canaries
from soak.detectors.clock import SoakClock
from soak.detectors.leaks.recycler import Recycler
from soak.detectors.leaks.sweeper import Sweeper
from soak.detectors.reporter import Reporter
from soak.journal.writer import FileJournal, read_journal
from soak.ledger.reader import LedgerReader
from soak.ledger.schema import SUPERVISOR
from soak.model.vocabulary import DetectorName, RunState, VerdictWord
from soak.process.child import fork
from soak.supervisor import supervisor as supervisor_module
from soak.supervisor.hooks.base import Hook
from soak.supervisor.summary import Summary
from soak.supervisor.supervisor import Supervisor
from soak.verdict import judge
from soak.workload.loop import outcome_columns
from soak.workload.pool import WorkerPool, WorkerProcess
from tests.support.idle_operators import Idle, Stuck
from tests.support.soak import DEADLINE, make_ledger, workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from soak.ledger.writer import BlockWriter
    from soak.workload.worker import Operator

RELEASE = (6, 1)
LONG = 600.0
MOST_WEDGED = 1


class Watching(Detector):
    """Writes down what it is asked to do."""

    name = DetectorName.REFUSALS

    def __init__(self, notes: Path, pool: WorkerPool) -> None:
        self._notes, self._pool = notes, pool

    def note(self, step: str) -> None:
        with self._notes.open("a") as file:
            file.write(f"{step}\n")

    def prepare(self) -> None:
        self.note("prepare")

    def probe(self) -> None:
        self.note("probe")

    def look(self) -> None:
        self.note("look")

    def at_rest(self) -> None:
        self.note("at_rest")

    def free(self, worker: WorkerProcess) -> None:
        self.note(f"free {worker.plan.name}")
        os.kill(worker.pid, signal.SIGKILL)

    def commit(self) -> None:
        self.note("commit")

    def uncovered(self) -> list[str]:
        return ["open of fs-dax over none"]


class Undecided(Watching):
    """One whose first probe tells nothing."""

    _probes = 0

    @property
    def undecided(self) -> bool:
        return self._probes == 1

    def probe(self) -> None:
        self._probes += 1
        super().probe()


class Raising(Watching):
    """One of which a step fails each time."""

    name = DetectorName.STALLS

    def __init__(self, step: str, notes: Path, pool: WorkerPool) -> None:
        super().__init__(notes, pool)
        self._step = step

    def note(self, step: str) -> None:
        super().note(step)
        if step.split(maxsplit=1)[0] == self._step:
            raise LookupError(f"no {step}")


class Wedging(Watching):
    """One that gives up so many workers, as if they hung for good."""

    def __init__(self, wedged: int, notes: Path, pool: WorkerPool) -> None:
        super().__init__(notes, pool)
        self._wedged = wedged

    def look(self) -> None:
        super().look()
        for member in self._pool.workers:
            if self._wedged and member.running and member.block.get("ended"):
                self._wedged -= 1
                self._pool.abandon(member)


class SlowAtRest(Watching):
    """One whose sweeps take long enough for a signal to come in the middle of one."""

    def at_rest(self) -> None:
        self.note("sweeping")
        time.sleep(0.5)
        super().at_rest()


class LateHook(Hook):
    def beat(self) -> str | None:
        time.sleep(0.5)
        return None


class EndingHook(Hook):
    def beat(self) -> str | None:
        return "what it works on has gone"


class Soak:
    """A soak in a process of its own, seen through its ledger, its journal and a detector's notes."""

    def __init__(
        self,
        place: Path,
        *,
        kind: Callable[[Path, WorkerPool], Detector] = Watching,
        hook: Hook | None = None,
        operator: Callable[[BlockWriter], Operator] = Idle,
        duration: float = LONG,
        sweep: float = LONG,
    ) -> None:
        self._notes, self.journal = place / "notes", place / "journal.jsonl"
        ledger = make_ledger(place / "ledger")
        self.ledger = LedgerReader.open(place / "ledger")

        def soak() -> None:
            block = ledger.block(SUPERVISOR)
            processes = [
                WorkerProcess(
                    plan, ledger.block(plan.name), outcome_columns(plan.cells, RELEASE), operator
                )
                for plan in workers()
            ]
            pool = WorkerPool(processes, block.view("pause"), block.view("uncertain"))
            with FileJournal(self.journal) as journal:
                reporter = Reporter(block, journal)
                sweeper = Sweeper(
                    block, journal, reporter, [], pool, open_pins={}, known_issues=frozenset()
                )
                Supervisor(
                    block=block,
                    pool=pool,
                    journal=journal,
                    reporter=reporter,
                    detectors=[kind(self._notes, pool), Watching(self._notes.with_name("second"), pool)],
                    recycler=Recycler(block, journal, pool, sweeper, [], threshold=0.0, release=RELEASE),
                    canaries=Canaries(
                        block, journal, reporter, [], every=0.0, differences=sweeper.differences
                    ),
                    summary=Summary(block, journal, [worker.block for worker in processes]),
                    clock=SoakClock(),
                    duration=duration,
                    sweep_interval=sweep,
                    most_wedged=MOST_WEDGED,
                    run={"run_id": "1", "promised": {}, "swept": [], "canaries": []},
                    hooks=[hook] if hook else [],
                    control=None,
                ).run()

        self.pid = fork(soak)

    def events(self, name: str) -> list[dict[str, Any]]:
        if not self.journal.exists():
            return []
        return [event for event in read_journal(self.journal) if event["event"] == name]

    def notes(self, who: str = "notes") -> list[str]:
        path = self._notes.with_name(who)
        return path.read_text().splitlines() if path.exists() else []

    def get(self, name: str, *indices: int) -> int:
        return self.ledger.block(SUPERVISOR).get(name, *indices)

    def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.02)

    def end(self, signal_number: signal.Signals | None = None) -> str:
        """End it, or wait for its end, and return why it ended."""
        if signal_number is not None:
            os.kill(self.pid, signal_number)
        pid, end = 0, time.monotonic() + DEADLINE
        while not pid:
            assert time.monotonic() < end
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            time.sleep(0.02)
        assert os.waitstatus_to_exitcode(status) == 0
        (ended,) = self.events("run.ended")
        why: str = ended["why"]
        return why

    def kill(self) -> None:
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass  # it has ended
        self.ledger.close()


@pytest.fixture
def soak_with(tmp_path: Path) -> Iterator[Callable[..., Soak]]:
    started: list[Soak] = []

    def start(**options: Any) -> Soak:  # noqa: ANN401 - those of Soak
        started.append(Soak(tmp_path, **options))
        return started[-1]

    yield start
    for soak in started:
        soak.kill()


def test_a_run_ends_after_its_duration(soak_with: Callable[..., Soak]) -> None:
    soak = soak_with(duration=0.5)
    assert soak.end() == "duration elapsed"
    names = [event["event"] for event in read_journal(soak.journal)]
    assert names[:1] == ["machine.booted"]
    assert names[-1] == "run.ended"
    assert names.index("run.started") < names.index("workers.started") < names.index("sample.taken")
    assert soak.get("soaked_ns") >= 500_000_000
    # Once before the workers, then at each beat, at last when they are gone.
    notes = soak.notes()
    assert notes[:2] == ["prepare", "probe"]
    assert notes.count("look") > 1
    assert notes[-2:] == ["at_rest", "commit"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_run_in_order(soak_with: Callable[..., Soak], number: signal.Signals) -> None:
    soak = soak_with()
    soak.until(lambda: "look" in soak.notes())
    assert soak.end(number) == f"stopped by {number.name}"
    assert soak.notes()[-2:] == ["at_rest", "commit"]


def test_a_signal_during_preparation_ends_the_run(soak_with: Callable[..., Soak]) -> None:
    soak = soak_with(kind=SlowToProbe)
    soak.until(lambda: "begins" in soak.notes())
    assert soak.end(signal.SIGTERM) == "stopped by SIGTERM"
    assert soak.events("workers.started")


class SlowToProbe(Watching):
    def probe(self) -> None:
        self.note("begins")
        time.sleep(1.0)


@pytest.mark.parametrize("step", ["prepare", "probe", "look", "at_rest", "commit"])
def test_a_detector_that_raises_ends_nothing(soak_with: Callable[..., Soak], step: str) -> None:
    soak = soak_with(kind=partial(Raising, step), sweep=0.5)
    soak.until(lambda: {"at_rest", "commit", step} <= set(soak.notes("second")))
    assert soak.end(signal.SIGTERM) == "stopped by SIGTERM"
    (failed,) = soak.events("detector.failed")
    assert failed["detector"] == DetectorName.STALLS
    assert f"no {step}" in failed["summary"]
    rows = soak.ledger.block(SUPERVISOR).named_rows("detectors")
    assert rows[DetectorName.REFUSALS]["success"] == 1
    verdict = judge(read_journal(soak.journal))
    assert verdict.verdict is VerdictWord.UNKNOWN
    assert failed["summary"] in verdict.reasons


def test_a_failing_detector_is_shown_in_the_ledger(soak_with: Callable[..., Soak]) -> None:
    soak = soak_with(kind=partial(Raising, "look"))
    soak.until(lambda: soak.notes("second").count("look") > 3)
    soak.until(lambda: soak.ledger.block(SUPERVISOR).named_rows("detectors")["stalls"]["runs"] > 3)
    assert soak.ledger.block(SUPERVISOR).named_rows("detectors")["stalls"]["success"] == 0
    soak.end(signal.SIGTERM)


def test_others_free_what_a_failing_detector_cannot(
    soak_with: Callable[..., Soak], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "_BARRIER_SECONDS", 0.5)
    monkeypatch.setattr(supervisor_module, "_STOP_SECONDS", 0.5)
    soak = soak_with(kind=partial(Raising, "free"), operator=Stuck, sweep=1.0)
    soak.until(lambda: "at_rest" in soak.notes("second"))
    (failed, *_) = soak.events("detector.failed")
    assert "no free" in failed["summary"]
    assert soak.end(signal.SIGTERM) == "stopped by SIGTERM"


def test_too_many_wedged_workers_end_the_run(soak_with: Callable[..., Soak]) -> None:
    soak = soak_with(kind=partial(Wedging, MOST_WEDGED + 1))
    assert soak.end() == f"{MOST_WEDGED + 1} workers are wedged in the kernel"
    (reached,) = soak.events("limit.reached")
    assert (reached["limit"], reached["wedged"]) == ("wedged-workers", MOST_WEDGED + 1)
    verdict = judge(read_journal(soak.journal))
    assert verdict.verdict is VerdictWord.UNKNOWN
    assert reached["summary"] in verdict.reasons


def test_wedged_workers_within_the_limit_are_replaced(soak_with: Callable[..., Soak]) -> None:
    soak = soak_with(kind=partial(Wedging, MOST_WEDGED), sweep=0.5)
    # A sweep is made when all workers rest, the one in the place of the wedged one included.
    soak.until(lambda: soak.notes().count("at_rest") > 1)
    incarnations = sorted(soak.ledger.block(plan.name).get("incarnation") for plan in workers())
    assert incarnations == [1, 2]
    assert soak.end(signal.SIGTERM) == "stopped by SIGTERM"
    assert soak.events("worker.died") == []


def test_a_signal_does_not_cut_a_sweep_short(soak_with: Callable[..., Soak]) -> None:
    soak = soak_with(kind=SlowAtRest, sweep=0.2)
    soak.until(lambda: "sweeping" in soak.notes())
    assert soak.end(signal.SIGTERM) == "stopped by SIGTERM"
    assert soak.notes().count("at_rest") == soak.notes().count("sweeping")


def test_a_second_signal_cuts_no_end_short(soak_with: Callable[..., Soak]) -> None:
    soak = soak_with(kind=SlowAtRest)
    soak.until(lambda: "look" in soak.notes())
    os.kill(soak.pid, signal.SIGTERM)
    soak.until(lambda: "sweeping" in soak.notes())
    assert soak.end(signal.SIGINT) == "stopped by SIGTERM"
    assert soak.notes()[-2:] == ["at_rest", "commit"]


def test_an_inconclusive_probe_is_repeated(soak_with: Callable[..., Soak]) -> None:
    soak = soak_with(kind=Undecided, duration=0.5)
    soak.end()
    assert soak.notes().count("probe") == 2
    assert soak.notes("second").count("probe") == 1


def test_each_uncovered_expectation_is_an_error(soak_with: Callable[..., Soak]) -> None:
    soak = soak_with(duration=0.2)
    soak.end()
    missing = soak.events("expectation.missing")
    assert [event["summary"] for event in missing] == [
        "no expectation covers open of fs-dax over none"
    ] * 2


def test_a_worker_that_dies_is_replaced(soak_with: Callable[..., Soak]) -> None:
    soak = soak_with()
    (name, *_) = (plan.name for plan in workers())
    reader = LedgerReader.open(soak.journal.with_name("ledger"))
    soak.until(lambda: reader.block(name).get("ended") > 0)
    os.kill(reader.block(name).get("pid"), signal.SIGKILL)
    soak.until(lambda: soak.events("worker.restarted"))
    reader.close()
    (died,) = soak.events("worker.died")
    assert (died["worker"], died["signal"]) == (name, signal.SIGKILL)
    soak.end(signal.SIGTERM)


def test_a_late_hook_skips_no_detector(soak_with: Callable[..., Soak]) -> None:
    soak = soak_with(hook=LateHook())
    soak.until(lambda: soak.notes().count("look") > 2)
    assert soak.notes("second").count("look") > 1
    assert soak.end(signal.SIGTERM) == "stopped by SIGTERM"


def test_a_hook_can_end_a_run(soak_with: Callable[..., Soak]) -> None:
    assert soak_with(hook=EndingHook()).end() == "what it works on has gone"


def test_late_workers_are_freed_before_a_sweep(
    soak_with: Callable[..., Soak], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "_BARRIER_SECONDS", 0.5)
    soak = soak_with(operator=Stuck, sweep=1.0)
    soak.until(lambda: "at_rest" in soak.notes())
    names = {plan.name for plan in workers()}
    assert {f"free {name}" for name in names} <= set(soak.notes())
    assert soak.events("detector.failed") == []
    assert soak.get("state") == list(RunState).index(RunState.RUNNING)


class NotFreeing(Watching):
    def free(self, worker: WorkerProcess) -> None:
        self.note(f"free {worker.plan.name}")


def test_a_missed_sweep_fails_its_detectors(
    soak_with: Callable[..., Soak], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "_BARRIER_SECONDS", 0.2)
    monkeypatch.setattr(supervisor_module, "_FREED_SECONDS", 0.2)
    monkeypatch.setattr(supervisor_module, "_STOP_SECONDS", 0.5)
    monkeypatch.setattr(Watching, "free", NotFreeing.free)
    soak = soak_with(operator=Stuck, sweep=1.0)
    soak.until(lambda: soak.events("detector.failed"))
    (failed, *_) = soak.events("detector.failed")
    assert "did not come to rest" in failed["summary"]
    assert "at_rest" not in soak.notes()
    soak.end(signal.SIGTERM)
    (killed,) = soak.events("workers.killed")
    assert set(killed["workers"]) == {plan.name for plan in workers()}
