# SPDX-License-Identifier: GPL-2.0-only
"""One moment of a worker's block, in words."""

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
    """A worker's block, and what the supervisor wrote about that worker."""

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
        """What the worker itself wrote, unless the supervisor gave it up."""
        return WorkerState.DEAD if self.given_up else WorkerState(self.block.word("state"))

    @cached_property
    def cells(self) -> list[Cell]:
        """What it counts, in the order of its rows."""
        return [Cell.parse(label) for label in self.block.named_rows("counts")]

    @property
    def in_flight(self) -> InFlight | None:
        """The newest line of its recorder, if that operation has not ended."""
        # The last line of a worker that was killed stays; the call that it names is over.
        if self.state is WorkerState.DEAD:
            return None
        line = in_flight(self.block.get, self.block.flat)
        if line is None or line["end_ns"]:
            return None
        return InFlight(self.cells[line["cell"]], line["start_ns"])


def outcome_and_errno(column: str) -> tuple[Outcome, str]:
    """Split a column of `COUNT_COLUMNS`; the errno of an operation without one is empty."""
    outcome, _, errno = column.partition(" ")
    return Outcome(outcome), errno
