# SPDX-License-Identifier: GPL-2.0-only
"""Scheduled work: in its time by the monotonic clock, whatever the wall clock and the jobs do."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soak.journal.writer import FileJournal, read_journal
from soak.ledger.schema import JOBS
from soak.supervisor.jobs import Jobs
from tests.support.soak import DEADLINE, deterministic, make_ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from soak.ledger.writer import BlockWriter

SECOND = 1_000_000_000


class Desk:
    """Real jobs, a real ledger and a real journal; `now` is the monotonic clock where a test sets it."""

    def __init__(self, directory: Path, **options: Any) -> None:  # noqa: ANN401 - as Jobs has them
        self.directory = directory
        self.block: BlockWriter = make_ledger(directory / "ledger").block("supervisor")
        self.journal = FileJournal(directory / "journal.jsonl")
        self.jobs = Jobs(self.block, self.journal, **options)
        self.done: list[str] = []

    def noting(self, name: str) -> Callable[[], None]:
        return lambda: self.done.append(name)

    def count(self, name: str, column: str) -> int:
        return self.block.get("jobs", *self.block.index("jobs", name, column))

    def poll_until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < end, self.done
            self.jobs.run_pending()
            time.sleep(0.01)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    moment = [1000 * SECOND]
    monkeypatch.setattr("soak.supervisor.jobs.time.monotonic_ns", lambda: moment[0])
    return moment


@pytest.fixture
def zone() -> Iterator[Callable[[str], None]]:
    """Change the time zone of this process: local time, which `schedule` reads, then really jumps."""
    before = os.environ.get("TZ")

    def change(name: str) -> None:
        os.environ["TZ"] = name
        time.tzset()

    yield change
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


def test_a_job_runs_periodically(desk: Desk) -> None:
    desk.jobs.every("sweep", 0.05, desk.noting("sweep"))
    desk.jobs.run_pending()
    assert desk.done == []
    desk.poll_until(lambda: len(desk.done) == 3)
    assert desk.count("sweep", "runs") == 3
    assert desk.count("sweep", "failures") == 0


def test_the_first_turn_can_be_earlier(desk: Desk, now: list[int]) -> None:
    desk.jobs.every("canary", 600, desk.noting("canary"), first=15)
    for seconds, runs in ((14, 0), (15, 1), (614, 1), (615, 2)):
        now[0] = (1000 + seconds) * SECOND
        desk.jobs.run_pending()
        assert len(desk.done) == runs


def test_a_day_is_24_hours_of_the_run(tmp_path: Path, now: list[int]) -> None:
    desk = Desk(tmp_path)
    desk.jobs.daily("summary", desk.noting("summary"))
    for hours, runs in ((23.9, 0), (24, 1), (47.9, 1), (48, 2)):
        now[0] = 1000 * SECOND + int(hours * 3600) * SECOND
        desk.jobs.run_pending()
        assert len(desk.done) == runs


def test_a_day_continues_after_another_supervisor(tmp_path: Path, now: list[int]) -> None:
    desk = Desk(tmp_path)
    desk.jobs.daily("summary", desk.noting("summary"), passed=47 * 3600.0)
    for hours, runs in ((0.9, 0), (1, 1), (24.9, 1), (25, 2)):
        now[0] = 1000 * SECOND + int(hours * 3600) * SECOND
        desk.jobs.run_pending()
        assert len(desk.done) == runs


def test_a_day_may_be_short(tmp_path: Path) -> None:
    desk = Desk(tmp_path, day_seconds=0.05)
    desk.jobs.daily("summary", desk.noting("summary"))
    desk.poll_until(lambda: len(desk.done) == 2)


def test_a_raising_job_is_logged_and_runs_again(desk: Desk) -> None:
    def fail() -> None:
        desk.done.append("sweep")
        raise OSError(5, "no luck")

    desk.jobs.every("sweep", 0.03, fail)
    desk.jobs.every("sample", 0.03, desk.noting("sample"))
    desk.poll_until(lambda: desk.done.count("sweep") >= 3 and desk.done.count("sample") >= 3)
    assert desk.count("sweep", "failures") == desk.count("sweep", "runs") >= 3
    assert desk.count("sample", "failures") == 0
    events = list(read_journal(desk.directory / "journal.jsonl"))
    assert len(events) == desk.count("sweep", "failures")
    for event in events:
        assert (event["event"], event["level"], event["job"]) == ("job.failed", "error", "sweep")
        assert "no luck" in event["summary"]


def test_an_always_due_job_starves_no_other(desk: Desk, now: list[int]) -> None:
    def slow() -> None:
        desk.done.append("sweep")
        now[0] += 25 * SECOND

    desk.jobs.every("sweep", 1, slow)
    desk.jobs.every("sample", 10, desk.noting("sample"))
    for _ in range(20):
        now[0] += SECOND
        desk.jobs.run_pending()
    assert desk.done.count("sweep") == 20
    assert desk.done.count("sample") >= 18


@pytest.mark.parametrize("hours", [-14, -2, -1, 1, 2, 12])
def test_a_jump_of_local_time_changes_nothing(
    desk: Desk, zone: Callable[[str], None], hours: int
) -> None:
    zone("UTC0")
    desk.jobs.every("sweep", 0.05, desk.noting("sweep"))
    desk.jobs.every("recycle", 3600, desk.noting("recycle"))
    desk.poll_until(lambda: desk.done.count("sweep") == 2)
    zone(f"X{-hours:+}")
    for _ in range(5):
        desk.jobs.run_pending()
    assert desk.done.count("sweep") <= 3
    # It does not stand still, and what is due in an hour has not come.
    desk.poll_until(lambda: desk.done.count("sweep") == 5)
    assert "recycle" not in desk.done
    assert desk.count("sweep", "lateness_ns") < 60 * SECOND


def test_a_jump_within_a_job_changes_nothing(desk: Desk, zone: Callable[[str], None]) -> None:
    zones = iter(("X-5", "X+5", "X-9", "UTC0"))

    def jump() -> None:
        desk.done.append("sweep")
        zone(next(zones, "UTC0"))

    zone("UTC0")
    desk.jobs.every("sweep", 0.03, jump)
    desk.jobs.every("recycle", 3600, desk.noting("recycle"))
    desk.poll_until(lambda: len(desk.done) == 6)
    assert desk.done == ["sweep"] * 6


def test_lateness_is_of_the_last_start(desk: Desk, now: list[int]) -> None:
    desk.jobs.every("counters", 5, desk.noting("counters"))
    now[0] += 7 * SECOND
    desk.jobs.run_pending()
    assert desk.count("counters", "lateness_ns") == 2 * SECOND
    now[0] += 3 * SECOND
    desk.jobs.run_pending()
    assert desk.count("counters", "lateness_ns") == 0


@given(
    st.integers(1, 50),
    st.lists(st.tuples(st.integers(1, 400), st.integers(0, 120)), min_size=1, max_size=30),
)
@deterministic
def test_turns_do_not_drift_and_missed_are_skipped(interval: int, polls: list[tuple[int, int]]) -> None:
    """Polls come at any time and jobs take any time: each turn is used once at most, in its time."""
    patch = pytest.MonkeyPatch()
    with tempfile.TemporaryDirectory() as directory, patch.context() as patched:
        now = [SECOND]
        patched.setattr("soak.supervisor.jobs.time.monotonic_ns", lambda: now[0])
        desk = Desk(Path(directory))
        begun: list[int] = []
        taking = [0]

        def work() -> None:
            begun.append(now[0])
            now[0] += taking[0] * SECOND

        desk.jobs.every("sweep", interval, work)
        ended = SECOND
        for pause, took in polls:
            now[0] += pause * SECOND
            taking[0], before = took, len(begun)
            # Which turns came since the last one ended: of any number, one is taken.
            due = (now[0] - SECOND) // (interval * SECOND) > (ended - SECOND) // (interval * SECOND)
            desk.jobs.run_pending()
            assert len(begun) - before == int(due)
            if due:
                assert desk.count("sweep", "lateness_ns") <= begun[-1] - ended
                ended = now[0]


@pytest.mark.parametrize("seconds", [0, -1])
def test_a_nonpositive_interval_is_refused(desk: Desk, seconds: float) -> None:
    with pytest.raises(ValueError, match="interval of job sweep is"):
        desk.jobs.every("sweep", seconds, desk.noting("sweep"))


def test_a_job_unknown_to_the_ledger_is_refused(desk: Desk) -> None:
    with pytest.raises(ValueError, match="tuple"):
        desk.jobs.every("coffee", 60, desk.noting("coffee"))


def test_the_ledger_lists_each_job_once() -> None:
    assert len(set(JOBS)) == len(JOBS)
    assert {"sweep", "sample", "counters", "canary", "summary", "recycle"} <= set(JOBS)
