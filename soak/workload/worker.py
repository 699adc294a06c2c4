# SPDX-License-Identifier: GPL-2.0-only
"""A worker: one process that runs the hot loop over the operations of its role."""

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

# How often a worker that waits for its rate polls the pause word.
_LONGEST_SLEEP_SECONDS: Final = 0.05


@dataclass(frozen=True)
class WorkerLimits:
    """Limits of a worker.

    `rate` is in operations a second, 0 for no limit; in a pair it applies to the leader alone.
    `enter` runs first in the worker's process and sets its resource limits.
    """

    rate: float = 0.0
    enter: Callable[[], None] = lambda: None


FREE: Final = WorkerLimits()


class Operator(Protocol):
    """Runs the operations of one role. A call takes a choice and returns 0, an errno or SKIPPED."""

    def calls(self) -> Mapping[Operation, Callable[[Choice], int]]: ...

    def rest(self) -> None:
        """Unmap every page that is not pinned: a sweep counts references next."""

    def close(self) -> None: ...


@runtime_checkable
class PacedOperator(Protocol):
    """One operator of a pair, which waits for its partner before it yields a choice.

    `leads`: this operator sets the pace of the pair.
    """

    leads: bool

    def paced(self, barrier: Barrier) -> Iterator[Choice]:
        """Yield choices until the run stops; poll the barrier while waiting for the partner."""


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
    """Run a worker in its own process, a child of the process `supervisor`, until it stops."""
    serve_parent(supervisor)
    limits.enter()
    signal.signal(NUDGE_SIGNAL, _ignore_signal)
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
    """Yield at most `rate` choices a second, without catching up after a delay."""
    interval = 1 / rate
    due = time.monotonic()
    for choice in choices:
        while (left := due - time.monotonic()) > 0:
            # A pause must not wait for the rate.
            if not barrier.passed():
                return
            time.sleep(min(left, _LONGEST_SLEEP_SECONDS))
        due = max(due + interval, time.monotonic())
        yield choice


def _ignore_signal(_signal: int, _frame: object) -> None:
    pass
