# SPDX-License-Identifier: GPL-2.0-only
"""Frees workers that are stuck in a system call.

It sends signals until the worker's ledger block moves, then SIGKILL. A worker that survives SIGKILL is
wedged: the soak abandons its file and starts another worker.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from soak.detectors.tasks import look_at
from soak.journal.writer import Level

if TYPE_CHECKING:
    from soak.detectors.stalls.counts import WaitCounts
    from soak.detectors.stalls.judge import Clock
    from soak.journal.writer import Journal
    from soak.ledger.writer import BlockWriter
    from soak.model.vocabulary import Operation
    from soak.workload.pool import WorkerPool, WorkerProcess

# In soak time, since the first signal.
_KILL_NS: Final = 5_000_000_000
_WEDGED_NS: Final = 10_000_000_000


@dataclass
class _Stuck:
    """A stuck worker. Times are monotonic nanoseconds.

    `number` is that of the worker's operation; `stalled` is the operation if it counts as a stall.
    """

    number: int
    incarnation: int
    since: int
    accounted: int
    stalled: Operation | None = None
    killed: bool = False


class Freeing:
    """Owns the stuck workers, from the first signal until their ledger moves or they are abandoned."""

    def __init__(
        self, block: BlockWriter, journal: Journal, pool: WorkerPool, clock: Clock, counts: WaitCounts
    ) -> None:
        self._block, self._journal, self._pool = block, journal, pool
        self._clock, self._counts = clock, counts
        self._stuck: dict[str, _Stuck] = {}

    def begin(self, name: str, number: int, stalled: Operation | None = None) -> None:
        """Begin to free a worker from the operation with this number; `step` continues.

        `stalled` is the operation to count as stalled until the worker is free.
        """
        now = time.monotonic_ns()
        worker = self._pool.worker(name)
        before = self._stuck.get(name)
        if before is not None and _has_moved(worker, before):
            self._report_freed(worker, before, now)
        new = _Stuck(number, worker.block.get("incarnation"), now, now)
        stuck = self._stuck.setdefault(name, new)
        if stalled is not None and stuck.stalled is None:
            stuck.stalled, stuck.accounted = stalled, now
            self._counts.begin_stalled(stalled)

    def step(self, now: int) -> None:
        """Signal, kill or give up each stuck worker as due; `now` is in monotonic nanoseconds."""
        for name, stuck in list(self._stuck.items()):
            worker = self._pool.worker(name)
            spent = self._clock.between(stuck.since, now)
            if stuck.stalled is not None:
                grown = self._clock.between(stuck.accounted, now)
                self._counts.add_stalled_time(stuck.stalled, grown)
                stuck.accounted = now
            if _has_moved(worker, stuck):
                self._report_freed(worker, stuck, now)
            elif stuck.killed and spent > _WEDGED_NS:
                self._give_up(worker)
            elif spent > _KILL_NS:
                stuck.killed = True
                self._pool.kill(worker)
            else:
                self._pool.nudge(worker)

    def _report_freed(self, worker: WorkerProcess, stuck: _Stuck, now: int) -> None:
        self._forget(worker)
        seconds = self._clock.between(stuck.since, now) / 1e9
        if stuck.killed:
            by = "SIGKILL"
        elif _is_another(worker, stuck):
            by = "the exit of its process"
        else:
            by = "a signal"
        self._journal.write("operation.freed", worker=worker.plan.name, by=by, seconds=round(seconds, 3))

    def _give_up(self, worker: WorkerProcess) -> None:
        name = worker.plan.name
        self._forget(worker)
        task = look_at(worker.pid)
        self._pool.abandon(worker)
        self._block.set_at("wedged", worker.abandoned, name)
        self._journal.write(
            "worker.wedged",
            Level.ERROR,
            worker=name,
            task=task,
            summary=f"{name} hangs in the kernel and cannot be killed; another worker replaces it "
            f"with another file",
        )

    def _forget(self, worker: WorkerProcess) -> None:
        stalled = self._stuck.pop(worker.plan.name).stalled
        if stalled is not None:
            self._counts.end_stalled(stalled)


def _has_moved(worker: WorkerProcess, stuck: _Stuck) -> bool:
    return worker.block.get("ended") > stuck.number or _is_another(worker, stuck)


def _is_another(worker: WorkerProcess, stuck: _Stuck) -> bool:
    """Return whether the stuck process has exited and was reaped."""
    return not worker.running or worker.block.get("incarnation") != stuck.incarnation
