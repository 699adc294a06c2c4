# SPDX-License-Identifier: GPL-2.0-only
"""Measurements of a benchmark, which the guest sends to the host, and the loop that takes them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    # Runs its operations and returns how many had the expected result.
    Timed = Callable[[], int]
    # Returns the function to time in the round of this number.
    Prepare = Callable[[int], Timed]

# The journal event with all measurements.
MEASURED: Final = "bench.measured"

_FEWEST_ROUNDS: Final = 5


@dataclass
class Series:
    """Measurements of one subject; the report compares other contenders with `references`.

    In each round each contender does `operations` operations (or reads as many pages);
    `nanoseconds` has one value for each round, `completed` counts the expected results of all rounds.
    """

    subject: str
    operations: int
    references: Sequence[str]
    completed: dict[str, int] = field(default_factory=dict)
    nanoseconds: dict[str, list[int]] = field(default_factory=dict)

    @property
    def rounds(self) -> int:
        return min(len(taken) for taken in self.nanoseconds.values())

    def shortfall(self) -> str | None:
        """Describe the first contender with unexpected results; None if there is none."""
        wanted = self.rounds * self.operations
        for name, completed in self.completed.items():
            if completed != wanted:
                return f"{self.subject}: {name} completed {completed:,} of {wanted:,}"
        return None

    def to_fields(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        return cls(**fields)


def take_turns(
    series: Series, contenders: Mapping[str, Prepare], seconds: float, beat: Callable[[], None]
) -> Series:
    """Time every contender once a round, so that drift affects all alike; fill and return `series`.

    Run for about `seconds`, and at least five rounds; call `beat` after each turn.
    """
    for name in contenders:
        series.completed[name] = 0
        series.nanoseconds[name] = []
    end = time.monotonic() + seconds
    number = 0
    while number < _FEWEST_ROUNDS or time.monotonic() < end:
        for name, prepare in contenders.items():
            timed = prepare(number)
            start = time.monotonic_ns()
            good = timed()
            series.nanoseconds[name].append(time.monotonic_ns() - start)
            series.completed[name] += good
            beat()
        number += 1
    return series
