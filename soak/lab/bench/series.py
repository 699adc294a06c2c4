# SPDX-License-Identifier: GPL-2.0-only
"""What a bench measured, as the guest hands it to the host, and how contenders take turns."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    # Does its operations and returns how many of them ended as they should.
    Timed = Callable[[], int]
    # Makes ready, untimed, what is timed in the round of this number.
    Prepare = Callable[[int], Timed]

# The journal's event with everything that was measured.
MEASURED: Final = "bench.measured"

_FEWEST_ROUNDS: Final = 5


@dataclass
class Series:
    """What came out for one subject; the `references` are those that others are compared with.

    In each round each contender does `operations` operations (or reads as many pages);
    `nanoseconds` has one number for each round, `completed` how many of all ended as they should.
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
        """Name the first contender of whose operations some did not end as they should."""
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
    """Let each contender have its turn, round by round, so that what drifts hits all alike.

    It takes about `seconds`, and at least five rounds; `beat` is called after each turn. What came
    out is in `series`.
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
