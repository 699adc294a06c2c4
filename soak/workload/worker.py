# SPDX-License-Identifier: GPL-2.0-only
"""A worker: one process that runs the loop over the operations of its role, and nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from soak.model.vocabulary import WorkerState
from soak.process.child import serve_parent
from soak.workload.loop import Barrier, work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from soak.ledger.writer import BlockWriter
    from soak.model.vocabulary import Operation
    from soak.workload.choices import Choice

# Interrupts a stuck call: the handler does nothing, and the call returns EINTR.
NUDGE_SIGNAL: Final = signal.SIGUSR1

# A worker that waits for its rate still sees the pause word so often.
_LONGEST_SLEEP_SECONDS: Final = 0.05


@dataclass(frozen=True)
class WorkerLimits:
    """What a worker keeps to.

    `rate` is in operations a second, 0 for as many as there can be; of workers that wait for each other
    it is for the one that leads. `enter` is called first in the worker's process: it sets limits on it.
    """

    rate: float = 0.0
    enter: Callable[[], None] = lambda: None


FREE: Final = WorkerLimits()


class Operator(Protocol):
    """Does the operations of one role. A call takes a choice and returns 0 or an errno."""

    def calls(self) -> Mapping[Operation, Callable[[Choice], int]]: ...

    def rest(self) -> None:
        """Let go of every page that is merely mapped: a sweep is about to count references."""

    def close(self) -> None: ...


@runtime_checkable
class PacedOperator(Protocol):
    """An operator that waits for another one: its choices come when their time has come.

    `leads` says whether the other one takes its time from this one.
    """

    leads: bool

    def paced(self, barrier: Barrier) -> Iterator[Choice]:
        """Yield choices until the end. While it waits for the other it looks at the barrier."""


def run_worker(
    block: BlockWriter,
    pause: memoryview[int],
    choices: Iterator[Choice],
    make_operator: Callable[[BlockWriter], Operator],
    columns: Sequence[Mapping[int, int]],
    *,
    supervisor: int,
    limits: WorkerLimits = FREE,
) -> None:
    """Be a worker of the process `supervisor`: the body of its process, from preparation to the end."""
    serve_parent(supervisor)
    limits.enter()
    signal.signal(NUDGE_SIGNAL, _nothing)
    block.set("pid", os.getpid())
    block.set_word("state", WorkerState.STARTING)
    with contextlib.closing(make_operator(block)) as operator:
        block.set("acknowledged", 0)
        block.set_word("state", WorkerState.RUNNING)
        barrier = Barrier(block, pause, operator.rest)
        follows = False
        if isinstance(operator, PacedOperator):
            choices, follows = operator.paced(barrier), not operator.leads
        if limits.rate and not follows:
            choices = _at_rate(choices, limits.rate, barrier)
        work(block, pause, choices, operator.calls(), columns, rest=operator.rest)
    block.set_word("state", WorkerState.ENDED)


def _at_rate(choices: Iterator[Choice], rate: float, barrier: Barrier) -> Iterator[Choice]:
    """Yield choices at most `rate` times a second; time that was lost is not made up for."""
    interval = 1 / rate
    due = time.monotonic()
    for choice in choices:
        while (left := due - time.monotonic()) > 0:
            # Whoever is asked to rest meanwhile must not keep the others waiting.
            if not barrier.passed():
                return
            time.sleep(min(left, _LONGEST_SLEEP_SECONDS))
        due = max(due + interval, time.monotonic())
        yield choice


def _nothing(_signal: int, _frame: object) -> None:
    pass
