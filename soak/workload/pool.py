# SPDX-License-Identifier: GPL-2.0-only
"""The pool: the worker processes of a run, started, watched, paused, replaced and ended by one owner."""

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
# A worker that dies so often in a row before it has done anything is not started again.
_IDLE_DEATHS: Final = 5


@dataclass(frozen=True)
class Death:
    """A worker that ended though nobody asked it to. `signal_number` is 0 where it exited."""

    worker: str
    incarnation: int
    exit_code: int
    signal_number: int
    in_flight: dict[str, int] | None
    gave_up: bool


@dataclass
class WorkerProcess:
    """One worker and what is needed to start it again."""

    plan: WorkerPlan
    block: BlockWriter
    columns: Sequence[Mapping[int, int]]
    make_operator: OperatorFactory
    # The number of the first file of this worker's region, as `quarantine` counts files.
    first_file: int = 0
    pid: int = 0
    # How many operations had begun when this process was started.
    begun_before: int = 0
    idle_deaths: int = 0
    # Processes of this worker that hang in the kernel for good.
    abandoned: int = 0

    @property
    def running(self) -> bool:
        return self.pid != 0


class WorkerPool:
    """Owns the worker processes. Nothing here blocks for longer than its deadline."""

    def __init__(
        self,
        workers: Sequence[WorkerProcess],
        pause: memoryview[int],
        uncertain: memoryview[int],
        *,
        limits: WorkerLimits = FREE,
    ) -> None:
        """Take the word by which workers are paused, and those that count uncertain pages by region.

        `limits` are what each worker has to keep to.
        """
        self.workers = workers
        self._pause = pause
        self.uncertain = uncertain
        self._limits = limits
        self._barriers = 0
        self._by_name = {member.plan.name: member for member in workers}
        # Abandoned processes that have not ended, and the pages that each may hold, by region.
        self._left: dict[int, list[int]] = {}
        # Workers for which the kernel had no process, and why.
        self._unborn: dict[str, str] = {}

    @property
    def unborn(self) -> dict[str, str]:
        """The workers for which there is no process just now, and why; `reap` tries again."""
        return dict(self._unborn)

    def worker(self, name: str) -> WorkerProcess:
        return self._by_name[name]

    def adopt(self) -> None:
        """Put the books in order that workers left which died with another supervisor."""
        for member in self.workers:
            if member.block.get("incarnation"):
                self._settle(member)

    def start(self, members: Sequence[WorkerProcess] | None = None) -> None:
        """Start workers: all of them, or those that were retired."""
        for member in self.workers if members is None else members:
            self._start(member)

    def retire(self, members: Sequence[WorkerProcess], seconds: float) -> list[str]:
        """End workers that rest, and all that they hold with them; return those that did not end.

        They are not replaced until `start` is called for them.
        """
        for member in members:
            self._unborn.pop(member.plan.name, None)
            self.kill(member)
        deadline = time.monotonic() + seconds
        while left := [member for member in members if member.running]:
            for member in left:
                if self._ended(member) is not None:
                    self._settle(member)
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL_SECONDS)
        return [member.plan.name for member in left]

    def reap(self) -> Iterator[Death]:
        """Tell which workers died since the last call, and start others in their place."""
        ended = [pid for pid in self._left if os.waitpid(pid, os.WNOHANG)[0] != 0]
        for pid in ended:
            del self._left[pid]
        for name in self.unborn:
            self._start(self._by_name[name])
        for member in self.workers:
            status = self._ended(member)
            if status is None:
                continue
            code = os.waitstatus_to_exitcode(status)
            idle = member.block.get("begun") == member.begun_before
            member.idle_deaths = member.idle_deaths + 1 if idle else 0
            gave_up = member.idle_deaths >= _IDLE_DEATHS
            death = Death(
                member.plan.name,
                member.block.get("incarnation"),
                max(code, 0),
                max(-code, 0),
                in_flight(member.block.get, member.block.view),
                gave_up,
            )
            self._settle(member)
            if not gave_up:
                self._start(member)
            yield death

    def pause(self, seconds: float, meanwhile: Callable[[], None]) -> list[str]:
        """Ask every worker to rest between two operations; return those that did not in time.

        `meanwhile` is called again and again while they come to rest.
        """
        self._barriers += 1
        self._pause[0] = self._barriers
        deadline = time.monotonic() + seconds
        while (late := self._not_resting()) and time.monotonic() < deadline:
            meanwhile()
            time.sleep(_POLL_SECONDS)
        return late

    def nudge(self, member: WorkerProcess) -> None:
        """Interrupt the call that a worker is in, if it can be interrupted."""
        if member.running:
            os.kill(member.pid, NUDGE_SIGNAL)

    def kill(self, member: WorkerProcess) -> None:
        """Kill a worker; `reap` replaces it when it has died of it."""
        if member.running:
            os.kill(member.pid, signal.SIGKILL)

    def abandon(self, member: WorkerProcess) -> None:
        """Start another worker in the place of one that was killed and does not die.

        It never runs again outside the kernel, and so never writes to its block again. Its file is
        left alone: the next one has another.
        """
        flight = in_flight(member.block.get, member.block.view)
        mapped, unmapped = (member.block.view(f"pages_{word}") for word in ("mapped", "unmapped"))
        held = [pages - gone for pages, gone in zip(mapped, unmapped, strict=True)]
        if flight is not None:
            held[flight["region"]] += flight["length"] // PAGE_SIZE
        self._left[member.pid] = held
        member.pid = 0
        member.abandoned += 1
        if member.plan.pair:
            member.block.add("generation", 1)
        elif flight is not None and member.plan.files:
            member.block.set("quarantine", 1, member.first_file + flight["place"])
        self._settle(member)
        self._start(member)

    def stranded(self, region: int) -> int:
        """Return how many pages of a region may be held by calls that do not come back.

        They are those of abandoned processes, and at the end those of workers that do not stop.
        """
        flights = [
            in_flight(member.block.get, member.block.view) for member in self.workers if member.running
        ]
        return sum(held[region] for held in self._left.values()) + sum(
            flight["length"] // PAGE_SIZE
            for flight in flights
            if flight is not None and flight["region"] == region
        )

    def lost_one(self) -> bool:
        """Say whether a worker died that was not reaped yet: its books are not in order then."""
        return any(_is_dead(member.pid) for member in self.workers if member.running)

    def resume(self) -> None:
        self._pause[0] = RUN_WORD

    def stop(self, seconds: float, meanwhile: Callable[[], None]) -> list[str]:
        """End every worker: by the pause word, then by force; return those that had to be killed.

        `meanwhile` is called again and again until all have ended.
        """
        self._pause[0] = STOP_WORD
        self._unborn.clear()
        deadline = time.monotonic() + seconds
        killed: list[str] = []
        while any(member.running for member in self.workers):
            for member in self.workers:
                if self._ended(member) is not None:
                    self._settle(member)
            meanwhile()
            late = time.monotonic() >= deadline
            for member in self.workers if late else ():
                if member.running:
                    killed.append(member.plan.name)
                    # The nudge frees a call that sleeps interruptibly; the rest is for the kernel.
                    os.kill(member.pid, NUDGE_SIGNAL)
                    os.kill(member.pid, signal.SIGKILL)
            if late and time.monotonic() >= deadline + seconds:
                break
            time.sleep(_POLL_SECONDS if not late else seconds / 10)
        return sorted(set(killed))

    def _not_resting(self) -> list[str]:
        return [
            member.plan.name
            for member in self.workers
            if member.running
            and not _is_dead(member.pid)
            and member.block.get("acknowledged") != self._barriers
        ]

    def _start(self, member: WorkerProcess) -> None:
        """Start a worker's process; where a machine is short of them, that is tried again later."""
        block, plan = member.block, member.plan
        incarnation = block.get("incarnation")
        block.add("incarnation", 1)
        member.begun_before = block.get("begun")
        block.set_word("state", WorkerState.STARTING)
        block.set("acknowledged", 0)
        supervisor = os.getpid()

        def be_worker() -> None:
            os.setpriority(os.PRIO_PROCESS, 0, 0)
            run_worker(
                block,
                self._pause,
                plan.choices(incarnation),
                member.make_operator,
                member.columns,
                supervisor=supervisor,
                limits=self._limits,
            )

        try:
            # A worker inherits nothing: a copy of a pipe's end would keep a pin.
            pid = fork(be_worker, keep=())
        except OSError as error:
            block.set("incarnation", incarnation)
            block.set_word("state", WorkerState.DEAD)
            self._unborn[plan.name] = os.strerror(error.errno or 0)
            return
        member.pid = pid
        self._unborn.pop(plan.name, None)

    def _ended(self, member: WorkerProcess) -> int | None:
        if not member.running:
            return None
        pid, status = os.waitpid(member.pid, os.WNOHANG)
        if pid == 0:
            return None
        member.pid = 0
        return status

    def _settle(self, member: WorkerProcess) -> None:
        """Put the books of a worker in order that can no longer do it.

        Its container closed with it, so the kernel has unmapped all that it held. Whether a map that
        was in flight had been granted is not known: its pages are uncertain until the next sweep.
        """
        block = member.block
        flight = in_flight(block.get, block.view)
        if flight is not None:
            cell = member.plan.cells[flight["cell"]]
            if cell.operation is Operation.MAP:
                self.uncertain[flight["region"]] += flight["length"] // PAGE_SIZE
        if member.plan.role is Role.HOLDER:
            end_hold(block)
        mapped, unmapped = block.view("pages_mapped"), block.view("pages_unmapped")
        for position, pages in enumerate(mapped):
            unmapped[position] = pages
        block.set("ended", block.get("begun"))
        if block.block.fields["state"].values[block.get("state")] != WorkerState.ENDED:
            block.set_word("state", WorkerState.DEAD)


def _is_dead(pid: int) -> bool:
    """Say whether a child has ended, without reaping it."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def end_hold(block: BlockWriter) -> None:
    """Note that a holder's last pin ended with its process, at some moment before now."""
    begun = block.get("holds_begun")
    if begun:
        last = HOLDS.start(begun - 1) + HOLDS.columns.index("release_after")
        words = block.view("holds")
        words[last] = words[last] or time.monotonic_ns()
