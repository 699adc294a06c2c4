# SPDX-License-Identifier: GPL-2.0-only
"""The soak's own time: it runs with the machine's and stands still with the machine."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from soak.detectors.clock import MOST_NS_PER_BEAT, SoakClock
from tests.support.soak import deterministic

BEAT = 100_000_000
steps = st.lists(st.integers(1, 100 * BEAT), min_size=2, max_size=50)
moments = st.integers(-10 * BEAT, 6000 * BEAT)


def clock(gaps: list[int]) -> tuple[SoakClock, list[int]]:
    made, beats = SoakClock(), [0]
    made.beat(0)
    for gap in gaps:
        beats.append(beats[-1] + gap)
        made.beat(beats[-1])
    return made, beats


def test_clock_advances_with_the_machine() -> None:
    made, beats = clock([BEAT] * 20)
    assert made.between(beats[3], beats[13]) == 10 * BEAT
    assert made.between(beats[3] + BEAT // 2, beats[4]) == BEAT // 2


def test_stopped_machine_adds_one_beat() -> None:
    made, beats = clock([BEAT] * 5 + [3600 * 10 * BEAT] + [BEAT] * 5)
    assert made.between(beats[5], beats[6]) == MOST_NS_PER_BEAT
    assert made.between(beats[0], beats[-1]) == 10 * BEAT + MOST_NS_PER_BEAT


def test_time_after_last_beat_adds_at_most_one() -> None:
    made, beats = clock([BEAT])
    assert made.between(beats[-1], beats[-1] + 1000 * BEAT) == MOST_NS_PER_BEAT


@given(steps, st.tuples(moments, moments, moments))
@deterministic
def test_soak_time_is_additive_and_bounded(gaps: list[int], unordered: tuple[int, int, int]) -> None:
    made, _ = clock(gaps)
    first, second, third = sorted(unordered)
    whole = made.between(first, third)
    parts = made.between(first, second) + made.between(second, third)
    # Each part is rounded down within its beat.
    assert abs(whole - parts) <= 1
    assert 0 <= whole <= third - first + 1
    assert made.between(third, first) == 0
