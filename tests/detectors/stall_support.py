# SPDX-License-Identifier: GPL-2.0-only
"""Waits and pins of a pair: written into its blocks by a test, or by real processes that hang."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from soak.abi.libc import LIBC
from soak.abi.procfs import task_wchan
from soak.detectors.reporter import Reporter
from soak.detectors.stalls.judge import StallDetector
from soak.detectors.stalls.probe import PROBES
from soak.detectors.stalls.responder import StallWatch
from soak.detectors.tasks import sleeps_for_pages
from soak.journal.writer import FileJournal, read_journal
from soak.ledger.schema import (
    CANARY_HOLDER,
    CANARY_INVALIDATOR,
    HOLD_COLUMNS,
    HOLDS_LENGTH,
    NO_KNOWN_ISSUE,
    RECORDER_COLUMNS,
    RECORDER_LENGTH,
    STALL_COLUMNS,
    SUPERVISOR,
    soak_layout,
)
from soak.ledger.writer import Ledger
from soak.model.known_issues import KNOWN_ISSUES
from soak.model.vocabulary import INVALIDATIONS, SHORT_PINS, Interface, Operation, Role
from soak.verdict import judge
from soak.workload.choices import Choice
from soak.workload.loop import outcome_columns
from soak.workload.pool import WorkerPool, WorkerProcess
from tests.support.idle_operators import Idle
from tests.support.soak import DEADLINE, REGIONS, planned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from soak.detectors.probes import Answer
    from soak.detectors.stalls.judge import Clock
    from soak.detectors.stalls.probe import ProbePlace
    from soak.ledger.writer import BlockWriter
    from soak.model.vocabulary import Violation
    from soak.verdict import Verdict
    from soak.workload.loop import Barrier
    from soak.workload.worker import Operator
    from soak.workload.worker_plan import WorkerPlan

HOLDER, INVALIDATOR = "trial-holder-0", "trial-invalidator-0"
PLACE = 4
RELEASE = (6, 12)
LATE_SECONDS, STALL_SECONDS = 0.5, 2.0
ALL_ISSUES = tuple(issue.name for issue in KNOWN_ISSUES)


def plan_pairs(pairs: int = 1) -> list[WorkerPlan]:
    return planned(trials=pairs, transfers=True)


def pair_ledger(path: Path, plans: list[WorkerPlan], known_issues: tuple[str, ...] = ()) -> Ledger:
    run = {
        "regions": [
            {"name": region.name, "kind": region.kind, "size": region.size, "files": 0}
            for region in REGIONS
        ]
    }
    entries = [(plan.name, plan.role, plan.cells) for plan in plans]
    return Ledger.create(path, soak_layout(run, entries, known_issues, lab=False))


def begin_wait(block: BlockWriter, operation: Operation, start_ns: int, place: int = PLACE) -> None:
    labels = [label.split()[0] for label in block.names("counts")]
    line = dict.fromkeys(RECORDER_COLUMNS, 0)
    line |= {"cell": labels.index(operation), "start_ns": start_ns, "place": place}
    row = block.get("begun") % RECORDER_LENGTH
    for column, value in enumerate(line.values()):
        block.set("recorder", value, row, column)
    block.add("begun", 1)


def end_wait(block: BlockWriter, end_ns: int, result: int = 0) -> None:
    row = block.get("ended") % RECORDER_LENGTH
    block.set("recorder", result, row, RECORDER_COLUMNS.index("result"))
    block.set("recorder", end_ns, row, RECORDER_COLUMNS.index("end_ns"))
    block.add("ended", 1)


def write_hold(
    block: BlockWriter,
    times_ns: tuple[int, int, int, int],
    interface: Interface = Interface.VMSPLICE,
    *,
    mapped: bool = True,
    certain: bool = True,
    place: int = PLACE,
) -> None:
    """Note a pin: begun to be taken, taken, begun to be given back, given back; 0 is not yet."""
    moments = dict(
        zip(("take_before", "take_after", "release_before", "release_after"), times_ns, strict=True)
    )
    line = dict.fromkeys(HOLD_COLUMNS, 0)
    line |= {"interface": SHORT_PINS.index(interface), "place": place}
    line |= {"mapped": int(mapped), "certain": int(certain), **moments}
    row = block.get("holds_begun") % HOLDS_LENGTH
    for column, value in enumerate(line.values()):
        block.set("holds", value, row, column)
    block.add("holds_begun", 1)


def give_back(block: BlockWriter, before_ns: int, after_ns: int) -> None:
    row = (block.get("holds_begun") - 1) % HOLDS_LENGTH
    block.set("holds", before_ns, row, HOLD_COLUMNS.index("release_before"))
    block.set("holds", after_ns, row, HOLD_COLUMNS.index("release_after"))


class Skipping:
    """Soak time that passes where the test has it pass, however long the test itself takes."""

    def __init__(self) -> None:
        self._skips: list[tuple[int, int]] = []

    def skip(self, seconds: float) -> None:
        self._skips.append((time.monotonic_ns(), int(seconds * 1e9)))

    def between(self, start_ns: int, end_ns: int) -> int:
        return sum(length for moment, length in self._skips if start_ns < moment <= end_ns)


class Hanging(Idle):
    """Does one operation, which sleeps in a read of a pipe; what replaces its process does none.

    It takes `signals` to free it. Each that arrives is noted in a file. Where `deaf`, none does.
    """

    leads = True

    def __init__(
        self,
        block: BlockWriter,
        *,
        operation: Operation,
        notes: Path,
        signals: int = 1,
        deaf: bool = False,
    ) -> None:
        super().__init__(block)
        self._operation, self._notes, self._signals = operation, notes, signals
        if deaf:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})

    def paced(self, barrier: Barrier) -> Iterator[Choice]:
        if self._block.get("incarnation") == 1:
            labels = [label.split()[0] for label in self._block.names("counts")]
            cell = labels.index(self._operation)
            yield Choice(0, cell, self._operation, 0, PLACE, 0, 4096, 0)
        while barrier.passed():
            time.sleep(0.01)

    def _do(self, _choice: Choice) -> int:
        reader, _writer = os.pipe()
        byte = ctypes.create_string_buffer(1)
        for _ in range(self._signals):
            assert LIBC.read(reader, byte, 1) < 0
            assert ctypes.get_errno() == errno.EINTR
            with self._notes.open("a") as file:
                file.write("freed\n")
        return errno.EINTR


class Desk:
    """A pair of workers, real ledger and journal, and a watch over them."""

    def __init__(
        self,
        directory: Path,
        *,
        clock: Clock | None = None,
        asleep: Callable[[int], bool] = sleeps_for_pages,
        applying: tuple[str, ...] = ALL_ISSUES,
        probes: Mapping[str, Callable[[ProbePlace], Answer | None]] = PROBES,
    ) -> None:
        self._directory = directory
        plans = plan_pairs()
        ledger = pair_ledger(directory / "ledger", plans, ALL_ISSUES)
        self.block = ledger.block(SUPERVISOR)
        self.holder, self.invalidator = ledger.block(HOLDER), ledger.block(INVALIDATOR)
        self.canary_holder = ledger.block(CANARY_HOLDER)
        self.canary_invalidator = ledger.block(CANARY_INVALIDATOR)
        self._operators: dict[str, Callable[[BlockWriter], Operator]] = {}
        self.pool = WorkerPool(
            [
                WorkerProcess(
                    plan,
                    ledger.block(plan.name),
                    outcome_columns(plan.cells, RELEASE),
                    partial(self._make, plan.name),
                )
                for plan in plans
            ],
            self.block.view("pause"),
            self.block.view("uncertain"),
        )
        self.journal = FileJournal(directory / "journal.jsonl")
        self.journal.write("machine.booted", kernel="6.12.0")
        self.journal.write("run.started", run_id="1", seed=1, promised={}, swept=[], canaries=[])
        self.reporter = Reporter(self.block, self.journal)
        self._skipping = Skipping()
        self._clock = self._skipping if clock is None else clock
        self._asleep, self._applying, self._probes = asleep, applying, probes
        self.watch = self.another()

    def another(self) -> StallWatch:
        """Return the watch of a supervisor that takes over."""
        blocks = {
            HOLDER: (Role.HOLDER, self.holder),
            INVALIDATOR: (Role.INVALIDATOR, self.invalidator),
            CANARY_HOLDER: (Role.HOLDER, self.canary_holder),
            CANARY_INVALIDATOR: (Role.INVALIDATOR, self.canary_invalidator),
        }
        return StallWatch(
            self.block,
            self.journal,
            self.reporter,
            self.pool,
            detector=StallDetector(
                {name: (role, block, ("files",)) for name, (role, block) in blocks.items()},
                self._clock,
                RELEASE,
                late_ns=int(LATE_SECONDS * 1e9),
                stall_ns=int(STALL_SECONDS * 1e9),
                asleep=self._asleep,
            ),
            clock=self._clock,
            probe_directory=self._directory,
            slow_device=None,
            known_issues=frozenset(self._applying),
            probes=self._probes,
        )

    def _make(self, name: str, block: BlockWriter) -> Operator:
        return self._operators[name](block)

    def notes(self, name: str) -> Path:
        return self._directory / f"signals-{name}"

    def hang(
        self, name: str, operation: Operation, *, signals: int = 1, deaf: bool = False
    ) -> WorkerProcess:
        """Start a worker whose first operation hangs, and wait until it does."""
        self._operators[name] = partial(
            Hanging, operation=operation, notes=self.notes(name), signals=signals, deaf=deaf
        )
        worker = self.pool.worker(name)
        self.pool.start([worker])
        wait_for(lambda: worker.block.get("begun") == 1 and sleeps(worker.pid))
        return worker

    def signals(self, name: str) -> int:
        """Return how many signals have ended a call of a worker."""
        path = self.notes(name)
        return len(path.read_text().splitlines()) if path.exists() else 0

    def wait_for_interruption(self, name: str, number: int) -> None:
        """Wait until so many signals have ended a read, and the worker sleeps in the next one.

        A signal that arrives between two reads ends neither.
        """
        pid = self.pool.worker(name).pid
        wait_for(lambda: self.signals(name) >= number and sleeps(pid))

    def pinned_before(self, interface: Interface = Interface.VMSPLICE) -> None:
        """Note a pin that was taken before a wait that begins now, and is given back."""
        now = time.monotonic_ns()
        write_hold(self.holder, (now - 9, now - 8, 0, 0), interface)

    def given_back(self) -> None:
        now = time.monotonic_ns()
        give_back(self.holder, now, now)

    def events(self, name: str) -> list[dict[str, Any]]:
        self.reporter.flush()
        path = self._directory / "journal.jsonl"
        return [event for event in read_journal(path) if event["event"] == name]

    def look(self) -> list[dict[str, Any]]:
        """Look once, and return the violations that are new in the journal."""
        before = len(self.events("violation.found"))
        self.watch.look()
        return self.events("violation.found")[before:]

    def waits(self, operation: Operation) -> dict[str, int]:
        row = INVALIDATIONS.index(operation) * len(STALL_COLUMNS)
        return dict(
            zip(STALL_COLUMNS, self.block.view("waits")[row : row + len(STALL_COLUMNS)], strict=True)
        )

    def counted(self, violation: Violation, issue: str = NO_KNOWN_ISSUE) -> int:
        return self.block.get("violations", *self.block.index("violations", violation, issue))

    def verdict(self) -> Verdict:
        """Return the verdict of the journal as it would stand at the end of a run."""
        self.reporter.flush()
        self.journal.write("sample.taken", completed={}, sweeps={}, journal_errors=0)
        self.journal.write("run.ended", why="duration elapsed")
        return judge(read_journal(self._directory / "journal.jsonl"))

    def skip(self, seconds: float) -> None:
        """Let soak time pass; it does not by itself."""
        self._skipping.skip(seconds)

    def close(self) -> None:
        self.pool.stop(0.1, lambda: None)
        self.journal.close()


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.005)


def sleeps(pid: int) -> bool:
    """Say whether a process sleeps in a read of a pipe."""
    try:
        return "pipe" in task_wchan(pid)
    except FileNotFoundError:
        return False
