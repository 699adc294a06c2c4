# SPDX-License-Identifier: GPL-2.0-only
"""Interprets a worker's block of the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from soak.ledger.recorder import in_flight
from soak.model.cell import Cell
from soak.model.vocabulary import Outcome, Role, WorkerState

if TYPE_CHECKING:
    from soak.ledger.reader import BlockSnapshot


@dataclass(frozen=True)
class InFlight:
    """An operation that has begun and has not ended; `start_ns` is monotonic."""

    cell: Cell
    start_ns: int


@dataclass(frozen=True)
class Worker:
    """A worker's block, and the supervisor's counts of that worker."""

    block: BlockSnapshot
    given_up: bool
    restarts: int
    wedged: int

    @property
    def name(self) -> str:
        return self.block.block.name

    @property
    def role(self) -> Role:
        return Role(self.block.block.labels["role"])

    @property
    def state(self) -> WorkerState:
        """The worker's own state, or dead if the supervisor gave it up."""
        return WorkerState.DEAD if self.given_up else WorkerState(self.block.word("state"))

    @cached_property
    def cells(self) -> list[Cell]:
        """The cells of the worker, in the order of its rows."""
        return [Cell.parse(label) for label in self.block.named_rows("counts")]

    @property
    def in_flight(self) -> InFlight | None:
        """The newest operation in the flight recorder, if it has not ended."""
        # A killed worker leaves its last line, but its system call is over.
        if self.state is WorkerState.DEAD:
            return None
        line = in_flight(self.block.get, self.block.flat)
        if line is None or line["end_ns"]:
            return None
        return InFlight(self.cells[line["cell"]], line["start_ns"])


def outcome_and_errno(column: str) -> tuple[Outcome, str]:
    """Split a column of `COUNT_COLUMNS`; without an errno, the second part is empty."""
    outcome, _, errno = column.partition(" ")
    return Outcome(outcome), errno
