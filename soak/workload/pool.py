# SPDX-License-Identifier: GPL-2.0-only
"""The pool: starts, pauses, replaces and stops the worker processes of a run."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from soak.ledger.recorder import HOLDS, in_flight
from soak.ledger.schema import RUN_WORD, STOP_WORD
from soak.model.vocabulary import Operation, Role, WorkerState
from soak.process.child import fork
from soak.regions.pages import PAGE_SIZE
from soak.workload.worker import FREE, NUDGE_SIGNAL, WorkerLimits, run_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from soak.ledger.writer import BlockWriter
    from soak.workload.worker import Operator
    from soak.workload.worker_plan import WorkerPlan

    OperatorFactory = Callable[[BlockWriter], Operator]

_POLL_SECONDS: Final = 0.01
# The pool gives up a worker after this many deaths in a row without an operation.
_IDLE_DEATHS: Final = 5


@dataclass(frozen=True)
class Death:
    """An unexpected end of a worker. `signal_number` is 0 if the process exited."""

    worker: str
    incarnation: int
    exit_code: int
    signal_number: int
    in_flight: dict[str, int] | None
    gave_up: bool


@dataclass
class WorkerProcess:
    """One worker, with everything needed to restart it."""

    plan: WorkerPlan
    block: BlockWriter
    columns: Sequence[Mapping[int, int]]
    make_operator: OperatorFactory
    # Index of the first file of this worker's region in `quarantine`.
    first_file: int = 0
    pid: int = 0
    # Operations begun before this process started.
    begun_before: int = 0
    idle_deaths: int = 0
    # Processes of this worker that hang in the kernel and survive SIGKILL.
    abandoned: int = 0

    @property
    def running(self) -> bool:
        return self.pid != 0


class WorkerPool:
    """Owns the worker processes. No method blocks longer than its deadline."""

    def __init__(
        self,
        workers: Sequence[WorkerProcess],
        pause: memoryview[int],
        uncertain: memoryview[int],
        *,
        limits: WorkerLimits = FREE,
    ) -> None:
        """Take the pause word that workers poll, and the counts of uncertain pages by region."""
        self.workers = workers
        self._pause = pause
        self.uncertain = uncertain
        self._limits = limits
        self._barriers = 0
        self._by_name = {worker.plan.name: worker for worker in workers}
        # The pages that each live abandoned process may hold, by pid and region.
        self._abandoned_pages: dict[int, list[int]] = {}
        # Workers whose fork failed, and the error.
        self._unborn: dict[str, str] = {}

    @property
    def unborn(self) -> dict[str, str]:
        """Workers whose fork failed, and the error; `reap` tries again."""
        return dict(self._unborn)

    def worker(self, name: str) -> WorkerProcess:
        return self._by_name[name]

    def adopt(self) -> None:
        """Settle the blocks of workers that died with an earlier supervisor."""
        for worker in self.workers:
            if worker.block.get("incarnation"):
                self._settle(worker)

    def start(self, workers: Sequence[WorkerProcess] | None = None) -> None:
        """Start all workers, or the given ones after `retire`."""
        for worker in self.workers if workers is None else workers:
            self._start(worker)

    def retire(self, workers: Sequence[WorkerProcess], seconds: float) -> list[str]:
        """Kill resting workers, which releases all that they hold; return those that did not end.

        `start` starts them again.
        """
        for worker in workers:
            self._unborn.pop(worker.plan.name, None)
            self.kill(worker)
        deadline = time.monotonic() + seconds
        while left := [worker for worker in workers if worker.running]:
            for worker in left:
                if self._ended(worker) is not None:
                    self._settle(worker)
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL_SECONDS)
        return [worker.plan.name for worker in left]

    def reap(self) -> Iterator[Death]:
        """Restart workers that died since the last call, and yield their deaths."""
        ended = [pid for pid in self._abandoned_pages if os.waitpid(pid, os.WNOHANG)[0] != 0]
        for pid in ended:
            del self._abandoned_pages[pid]
        for name in self.unborn:
            self._start(self._by_name[name])
        for worker in self.workers:
            status = self._ended(worker)
            if status is None:
                continue
            code = os.waitstatus_to_exitcode(status)
            idle = worker.block.get("begun") == worker.begun_before
            worker.idle_deaths = worker.idle_deaths + 1 if idle else 0
            gave_up = worker.idle_deaths >= _IDLE_DEATHS
            death = Death(
                worker.plan.name,
                worker.block.get("incarnation"),
                max(code, 0),
                max(-code, 0),
                in_flight(worker.block.get, worker.block.view),
                gave_up,
            )
            self._settle(worker)
            if not gave_up:
                self._start(worker)
            yield death

    def pause(self, seconds: float, meanwhile: Callable[[], None]) -> list[str]:
        """Pause every worker between two operations; return those that missed the deadline.

        Each poll calls `meanwhile`.
        """
        self._barriers += 1
        self._pause[0] = self._barriers
        deadline = time.monotonic() + seconds
        while (late := self._not_resting()) and time.monotonic() < deadline:
            meanwhile()
            time.sleep(_POLL_SECONDS)
        return late

    def nudge(self, worker: WorkerProcess) -> None:
        """Interrupt the system call of a worker, if it is interruptible."""
        if worker.running:
            os.kill(worker.pid, NUDGE_SIGNAL)

    def kill(self, worker: WorkerProcess) -> None:
        """Send SIGKILL to a worker; `reap` replaces it once it has died."""
        if worker.running:
            os.kill(worker.pid, signal.SIGKILL)

    def abandon(self, worker: WorkerProcess) -> None:
        """Replace a worker that survives SIGKILL, and give up its file.

        The process never returns to user space, so it never writes to its block again.
        """
        flight = in_flight(worker.block.get, worker.block.view)
        mapped, unmapped = (worker.block.view(f"pages_{word}") for word in ("mapped", "unmapped"))
        held = [pages - gone for pages, gone in zip(mapped, unmapped, strict=True)]
        if flight is not None:
            held[flight["region"]] += flight["length"] // PAGE_SIZE
        self._abandoned_pages[worker.pid] = held
        worker.pid = 0
        worker.abandoned += 1
        if worker.plan.pair:
            worker.block.add("generation", 1)
        elif flight is not None and worker.plan.files:
            worker.block.set("quarantine", 1, worker.first_file + flight["place"])
        self._settle(worker)
        self._start(worker)

    def stranded(self, region: int) -> int:
        """Return the number of a region's pages that calls hung in the kernel may hold.

        Abandoned processes hold them and, after `stop`, workers that did not stop.
        """
        flights = [
            in_flight(worker.block.get, worker.block.view) for worker in self.workers if worker.running
        ]
        return sum(held[region] for held in self._abandoned_pages.values()) + sum(
            flight["length"] // PAGE_SIZE
            for flight in flights
            if flight is not None and flight["region"] == region
        )

    def lost_one(self) -> bool:
        """Return whether a dead worker awaits `reap`: its block is not settled until then."""
        return any(_is_dead(worker.pid) for worker in self.workers if worker.running)

    def resume(self) -> None:
        self._pause[0] = RUN_WORD

    def stop(self, seconds: float, meanwhile: Callable[[], None]) -> list[str]:
        """Stop every worker by the pause word, then by SIGKILL; return the killed ones.

        Each poll calls `meanwhile`.
        """
        self._pause[0] = STOP_WORD
        self._unborn.clear()
        deadline = time.monotonic() + seconds
        killed: list[str] = []
        while any(worker.running for worker in self.workers):
            for worker in self.workers:
                if self._ended(worker) is not None:
                    self._settle(worker)
            meanwhile()
            late = time.monotonic() >= deadline
            for worker in self.workers if late else ():
                if worker.running:
                    killed.append(worker.plan.name)
                    # The nudge ends an interruptible sleep; SIGKILL acts when the call returns.
                    os.kill(worker.pid, NUDGE_SIGNAL)
                    os.kill(worker.pid, signal.SIGKILL)
            if late and time.monotonic() >= deadline + seconds:
                break
            time.sleep(_POLL_SECONDS if not late else seconds / 10)
        return sorted(set(killed))

    def _not_resting(self) -> list[str]:
        return [
            worker.plan.name
            for worker in self.workers
            if worker.running
            and not _is_dead(worker.pid)
            and worker.block.get("acknowledged") != self._barriers
        ]

    def _start(self, worker: WorkerProcess) -> None:
        """Fork a worker's process; if that fails, `reap` tries again."""
        block, plan = worker.block, worker.plan
        incarnation = block.get("incarnation")
        block.add("incarnation", 1)
        worker.begun_before = block.get("begun")
        block.set_word("state", WorkerState.STARTING)
        block.set("acknowledged", 0)
        supervisor = os.getpid()

        def run() -> None:
            os.setpriority(os.PRIO_PROCESS, 0, 0)
            run_worker(
                block,
                self._pause,
                plan.choices(incarnation),
                worker.make_operator,
                worker.columns,
                supervisor=supervisor,
                limits=self._limits,
            )

        try:
            # A worker inherits no descriptor: a copy of a pipe's end would keep its pages pinned.
            pid = fork(run, keep=())
        except OSError as error:
            block.set("incarnation", incarnation)
            block.set_word("state", WorkerState.DEAD)
            self._unborn[plan.name] = os.strerror(error.errno or 0)
            return
        worker.pid = pid
        self._unborn.pop(plan.name, None)

    def _ended(self, worker: WorkerProcess) -> int | None:
        if not worker.running:
            return None
        pid, status = os.waitpid(worker.pid, os.WNOHANG)
        if pid == 0:
            return None
        worker.pid = 0
        return status

    def _settle(self, worker: WorkerProcess) -> None:
        """Settle the block of a dead or abandoned worker.

        The kernel unmaps all that a process held when it closes its container. Whether it granted a
        map in flight is unknown: those pages are uncertain until the next sweep.
        """
        block = worker.block
        flight = in_flight(block.get, block.view)
        if flight is not None:
            cell = worker.plan.cells[flight["cell"]]
            if cell.operation is Operation.MAP:
                self.uncertain[flight["region"]] += flight["length"] // PAGE_SIZE
        if worker.plan.role is Role.HOLDER:
            end_hold(block)
        mapped, unmapped = block.view("pages_mapped"), block.view("pages_unmapped")
        for position, pages in enumerate(mapped):
            unmapped[position] = pages
        block.set("ended", block.get("begun"))
        if block.block.fields["state"].values[block.get("state")] != WorkerState.ENDED:
            block.set_word("state", WorkerState.DEAD)


def _is_dead(pid: int) -> bool:
    """Return whether a child has ended, without reaping it."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def end_hold(block: BlockWriter) -> None:
    """Record that a holder's last pin ended with its process, at the latest now."""
    begun = block.get("holds_begun")
    if begun:
        last = HOLDS.start(begun - 1) + HOLDS.columns.index("release_after")
        words = block.view("holds")
        words[last] = words[last] or time.monotonic_ns()
