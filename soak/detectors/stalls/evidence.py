# SPDX-License-Identifier: GPL-2.0-only
"""The evidence of a stall in the journal: tasks, pins and the last lines of the flight recorders."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from soak.detectors.tasks import look_at
from soak.ledger.recorder import RECORDER, Line, in_flight

if TYPE_CHECKING:
    from soak.detectors.stalls.judge import Clock, Hold, Judgement, Overdue
    from soak.workload.pool import WorkerPool, WorkerProcess

_MOST_HOLDS: Final = 8
_MOST_LINES: Final = 8
# A worker that has been in one call for longer than this may be blocked behind the stall.
_VICTIM_NS: Final = 500_000_000
_MILLISECOND: Final = 1_000_000


class Evidence:
    """Collects evidence from the kernel and the workers' blocks, before stuck workers are freed."""

    def __init__(self, pool: WorkerPool, clock: Clock) -> None:
        self._pool, self._clock = pool, clock

    def culprit(self, judgement: Judgement) -> dict[str, Any]:
        """Return state, wchan and stack of the waiting task; empty if the wait has ended."""
        worker = self._pool.worker(judgement.wait.worker)
        return look_at(worker.pid) if worker.running and not judgement.wait.end else {}

    def of_wait(self, judgement: Judgement, task: dict[str, Any]) -> dict[str, Any]:
        """Return the evidence of an invalidation and its pins; `task` is the result of `culprit`.

        Times of pins are in milliseconds since the start of the wait.
        """
        wait = judgement.wait
        workers = {wait.worker, *(hold.worker for hold in judgement.holds)}
        return {
            "worker": wait.worker,
            "file": wait.place,
            "excess_ms": _milliseconds(judgement.excess),
            "task": task,
            "behind": [] if wait.end else self._victims(wait.worker),
            "held": [_hold_line(hold, wait.start) for hold in judgement.holds[-_MOST_HOLDS:]],
            "recorders": {name: self._last_lines(name) for name in sorted(workers)},
        }

    def of_overdue(self, overdue: Overdue) -> dict[str, Any]:
        """Return the evidence of an overdue pin and its holder.

        Times are in milliseconds since the holder began to take the pin.
        """
        hold = overdue.hold
        worker = self._pool.worker(hold.worker)
        return {
            "worker": hold.worker,
            "file": overdue.place,
            "excess_ms": _milliseconds(overdue.lasted - overdue.bound),
            "task": look_at(worker.pid) if worker.running else {},
            "held": [_hold_line(hold, hold.take_before)],
            "recorders": {hold.worker: self._last_lines(hold.worker)},
        }

    def _victims(self, culprit: str) -> list[dict[str, Any]]:
        """Return the state of the other workers that have been in one call for long."""
        now = time.monotonic_ns()
        return [
            {"worker": worker.plan.name, **look_at(worker.pid)}
            for worker in self._pool.workers
            if worker.plan.name != culprit and worker.running and self._is_victim(worker, now)
        ]

    def _is_victim(self, worker: WorkerProcess, now: int) -> bool:
        flight = in_flight(worker.block.get, worker.block.view)
        return flight is not None and self._clock.between(flight["start_ns"], now) > _VICTIM_NS

    def _last_lines(self, worker: str) -> list[Line]:
        block = self._pool.worker(worker).block
        return RECORDER.last(block.view("recorder"), block.get("begun"), _MOST_LINES)


def of_canary(judgement: Judgement) -> dict[str, Any]:
    """Return the evidence of a canary's wait, whose helpers are not in the pool."""
    wait = judgement.wait
    return {
        "worker": wait.worker,
        "excess_ms": _milliseconds(judgement.excess),
        "held": [_hold_line(hold, wait.start) for hold in judgement.holds],
    }


def _hold_line(hold: Hold, start: int) -> dict[str, Any]:
    def since(moment: int) -> float | None:
        return _milliseconds(moment - start) if moment else None

    return {
        "worker": hold.worker,
        "interface": hold.interface,
        "backing": hold.backing,
        "taken": [since(hold.take_before), since(hold.take_after)],
        "given_back": [since(hold.release_before), since(hold.release_after)],
    }


def _milliseconds(nanoseconds: int) -> float:
    return round(nanoseconds / _MILLISECOND, 3)
