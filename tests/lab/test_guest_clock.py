# SPDX-License-Identifier: GPL-2.0-only
"""The guest's clock beside its host's: a wrong rate is noticed, and nothing else is taken for one."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soak.lab.host.guest_clock import GuestClock
from soak.model.vocabulary import VerdictWord
from soak.verdict import judge
from tests.support.journal import BOOT, valid_line
from tests.support.soak import KNOWN_ISSUE, deterministic

if TYPE_CHECKING:
    from collections.abc import Mapping

SECOND = 1_000_000_000
LABEL = "map device-dax vfio-type1"


class Machine:
    """A guest whose heart beats, now and then late, and a host that looks, now and then late."""

    def __init__(self, rate: float, latest: float = 0.0, seed: int = 1) -> None:
        self.rate = rate
        self.clock = GuestClock()
        self._random = random.Random(seed)  # noqa: S311 - repeatable on purpose
        self._latest = latest
        self._now, self._guest = 5000.0, 30.0
        self._beats, self._beaten, self._next = 0, 0.0, 0.0

    def watch(self, seconds: float) -> float | None:
        """Look for so long, or until something is wrong; return the ratio then."""
        end = self._now + seconds
        while self._now < end:
            step = 0.5 + self._random.uniform(0, self._latest)
            self._guest += step * self.rate
            self._now += step
            if self._guest >= self._next:
                self._beats += 1
                # Somewhere between the two looks.
                self._beaten = self._guest - self._random.uniform(0, step) * self.rate
                self._next = self._guest + self._random.uniform(0, self._latest) * self.rate
            ratio = self.clock.look(self._beats, int(self._beaten * SECOND), self._now)
            if ratio is not None:
                return ratio
        return None

    def pause(self, seconds: float) -> None:
        """Have the machine stand still, its clock with it, while the host goes on looking."""
        rate, self.rate = self.rate, 0.0
        self.watch(seconds)
        self.rate = rate


@pytest.mark.parametrize("rate", [2.7, 1.2, 0.8, 0.4])
def test_wrong_clock_rate_is_reported(rate: float) -> None:
    ratio = Machine(rate).watch(400)
    assert ratio == pytest.approx(rate, rel=0.05)


def test_large_deviation_is_reported_in_a_short_soak() -> None:
    assert Machine(2.7).watch(20) is not None


@given(st.floats(0.97, 1.03), st.floats(0, 20), st.integers(0, 99))
@deterministic
def test_delays_do_not_make_a_clock_wrong(rate: float, latest: float, seed: int) -> None:
    assert Machine(rate, latest, seed).watch(1000) is None


@pytest.mark.parametrize("seconds", [3, 40, 300])
def test_pause_does_not_make_a_clock_wrong(seconds: float) -> None:
    machine = Machine(1.0)
    for _ in range(4):
        assert machine.watch(100) is None
        machine.pause(seconds)
    assert machine.watch(100) is None


def lines(*more: tuple[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    events: list[tuple[str, Mapping[str, Any]]] = [
        ("machine.booted", {"kernel": "6.1.0"}),
        ("run.started", {"run_id": "1", "promised": {LABEL: 1}}),
        *more,
        ("sample.taken", {"completed": {LABEL: 5}, "journal_errors": 0}),
        ("run.ended", {}),
    ]
    return [valid_line(seq, event, **fields) for seq, (event, fields) in enumerate(events, 1)]


@pytest.mark.parametrize("kind", ["stall", "late-wakeup"])
def test_durations_by_a_wrong_clock_are_no_violations(kind: str) -> None:
    found = ("violation.found", {"kind": kind, "known_issue": None, "summary": "it slept on"})
    wrong = ("guest.clock-wrong", {"guest_boot_id": BOOT, "summary": "2.7 times as fast"})
    verdict = judge(lines(found, wrong))
    assert verdict.verdict is VerdictWord.UNKNOWN
    assert verdict.reasons == ("2.7 times as fast",)
    assert verdict.violations == ()
    # Whatever else was found stands, and so does a stall of another boot.
    pin = ("violation.found", {"kind": "unexpected-pin", "known_issue": None})
    assert judge(lines(found, wrong, pin)).verdict is VerdictWord.FAIL
    other = ("violation.found", {**found[1], "boot_id": "another"})
    assert judge(lines(other, wrong)).verdict is VerdictWord.FAIL


def test_equal_violations_of_two_boots_are_merged() -> None:
    found = {"kind": "stall", "known_issue": KNOWN_ISSUE, "count": 2}
    (entry,) = judge(
        lines(("violation.found", found), ("violation.found", {**found, "boot_id": "another"}))
    ).violations
    assert (entry.count, entry.first_event) == (4, 3)
