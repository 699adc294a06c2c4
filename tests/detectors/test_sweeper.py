# SPDX-License-Identifier: GPL-2.0-only
"""Sweeps without a kernel: counts are given, and what is reported, stored and judged is looked at."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from soak.detectors.leaks.measure import REFCOUNT_LIMIT
from soak.detectors.leaks.probe import PinProbe
from soak.detectors.leaks.sweeper import FULL_HEADROOM_PPM
from soak.ledger.recorder import RECORDER
from soak.ledger.schema import NO_KNOWN_ISSUE
from soak.model.vocabulary import Violation
from soak.process.child import fork
from soak.process.helper import HelperError
from tests.detectors.leak_support import CONFIRMED, INCONCLUSIVE, PAGES, REFUTED, SPAN, Desk
from tests.support.soak import DEADLINE, KNOWN_ISSUE

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_clean_sweep_reports_nothing_and_is_counted(desk: Desk) -> None:
    desk.shows = REFUTED
    desk.sweeper.probe()
    desk.map_and_unmap(40)
    assert desk.sweep() == []
    assert desk.sweeper.sweeps() == {"dax": 1}
    assert desk.block.get("swept_pages", 0) == PAGES


def test_a_reference_too_many_is_reported_once(desk: Desk) -> None:
    desk.shows = REFUTED
    desk.sweeper.probe()
    desk.counts.extra += 3
    (found,) = desk.sweep()
    assert (found["kind"], found["count"], found["known_issue"]) == (Violation.LEAK, 3, None)
    assert desk.sweep() == []
    desk.counts.extra += 2
    (more,) = desk.sweep()
    assert more["count"] == 2
    assert desk.counted(NO_KNOWN_ISSUE) == 5
    assert desk.leaks()[f"leaked {NO_KNOWN_ISSUE}"] == 5


def test_what_a_confirmed_issue_predicts_is_explained_to_the_page(desk: Desk) -> None:
    desk.sweeper.probe()
    desk.map_and_unmap(40, kept=40)
    (first,) = desk.sweep()
    # The page of the probe has stayed as well.
    assert (first["count"], first["known_issue"]) == (41, KNOWN_ISSUE)
    desk.map_and_unmap(10, kept=11)
    found = {event["known_issue"]: event["count"] for event in desk.sweep()}
    assert found == {KNOWN_ISSUE: 10, None: 1}
    assert (desk.counted(KNOWN_ISSUE), desk.counted(NO_KNOWN_ISSUE)) == (51, 1)


def test_fewer_than_predicted_is_unexplained(desk: Desk) -> None:
    desk.sweeper.probe()
    desk.map_and_unmap(40, kept=38)
    assert [event["count"] for event in desk.sweep() if event["known_issue"] is None] == [2]


def test_until_a_probe_decides_nothing_is_counted(desk: Desk) -> None:
    desk.shows = INCONCLUSIVE
    desk.sweeper.probe()
    assert desk.sweeper.undecided
    desk.map_and_unmap(5, kept=5)
    (found,) = desk.sweep()
    assert found["undecided"] == KNOWN_ISSUE
    assert (desk.counted(KNOWN_ISSUE), desk.counted(NO_KNOWN_ISSUE)) == (0, 0)
    desk.shows = CONFIRMED
    desk.sweeper.probe()
    assert not desk.sweeper.undecided
    assert desk.counted(KNOWN_ISSUE) == 5


def test_the_last_map_of_a_killed_worker_is_reconciled(desk: Desk) -> None:
    desk.sweeper.probe()
    desk.pool.uncertain[0] = 16
    desk.counts.extra += 9
    reconciled, found = desk.sweep()
    assert (reconciled["event"], reconciled["pages"]) == ("leak.reconciled", 9)
    assert found["known_issue"] == KNOWN_ISSUE
    assert desk.pool.uncertain[0] == 0


def test_a_supervisor_that_takes_over_reports_nothing_twice(desk: Desk) -> None:
    desk.sweeper.probe()
    desk.map_and_unmap(7, kept=8)
    assert len(desk.sweep()) == 2
    desk.sweeper = desk.another()
    assert desk.sweep() == []
    desk.map_and_unmap(1, kept=1)
    (found,) = desk.sweep()
    assert (found["count"], found["known_issue"]) == (1, KNOWN_ISSUE)


def test_a_canary_shows_while_a_call_still_holds_pages(desk: Desk) -> None:
    """What is stranded excuses a leak, and hides no page from who compares two measurements."""
    mapper = desk.pool.workers[0]
    mapper.pid = fork(partial(time.sleep, DEADLINE))  # a call that does not come back
    mapper.block.set("recorder", 16 * 4096, 0, RECORDER.columns.index("length"))
    mapper.block.set("begun", 1)
    assert desk.pool.stranded(0) == 16
    desk.counts.extra += 16
    assert desk.sweeper.differences() is not None
    before = desk.sweeper.differences()
    desk.counts.extra += 1
    after = desk.sweeper.differences()
    assert before is not None
    assert after is not None
    assert after["dax"] - before["dax"] == 1
    os.kill(mapper.pid, signal.SIGKILL)
    os.waitpid(mapper.pid, 0)


def test_a_sweep_that_a_death_disturbs_is_dropped(desk: Desk) -> None:
    """What it held goes while the counts are read: the next sweep sees how it stands."""
    mapper = desk.pool.workers[0]
    mapper.pid = fork(partial(time.sleep, DEADLINE))
    os.kill(mapper.pid, signal.SIGKILL)
    os.waitid(os.P_PID, mapper.pid, os.WEXITED | os.WNOWAIT)
    desk.counts.extra += 5
    assert desk.sweep() == []
    assert (desk.sweeper.sweeps(), desk.sweeper.differences()) == ({"dax": 0}, None)
    os.waitpid(mapper.pid, 0)
    mapper.pid = 0
    (found,) = desk.sweep()
    assert found["count"] == 5


def test_held_pages_are_no_leak_whatever_the_unit(desk: Desk) -> None:
    desk.shows = PinProbe(pinned=1024, left=0)
    desk.sweeper.probe()
    desk.worker.set("pages_mapped", 3, 0)
    desk.counts.extra += 3 * 1024
    assert desk.sweep() == []
    desk.counts.extra += 2 * 1024
    (found,) = desk.sweep()
    assert (found["count"], found["evidence"]["references_of_a_pin"]) == (2, 1024)


def test_an_issue_turned_off_explains_no_leak(tmp_path: Path) -> None:
    desk = Desk(tmp_path, applying=())
    desk.sweeper.probe()
    assert not desk.sweeper.undecided
    desk.map_and_unmap(7, kept=7)
    (found,) = desk.sweep()
    # The page of the probe has stayed as well.
    assert (found["count"], found["known_issue"], found["undecided"]) == (8, None, None)


def test_a_probe_that_fails_leaves_its_page_uncertain(desk: Desk) -> None:
    """It may have pinned a page before it died: the issue that predicts that is not known to be there."""
    desk.dies = True
    with pytest.raises(HelperError, match="died"):
        desk.sweeper.probe()
    assert desk.pool.uncertain[0] == 1
    assert not desk.sweeper.undecided


def test_pages_in_use_before_are_reported_once(desk: Desk) -> None:
    desk.counts.extra = 2
    desk.watch.renew(0, 0, 0)
    desk.shows = INCONCLUSIVE
    desk.sweeper.probe()
    desk.sweeper.probe()
    (event,) = (event for event in desk.events() if event["event"] == "region.differs")
    assert event["pages"] == [[SPAN.first, 3]]


def test_each_sweep_notes_what_can_still_be_pinned(desk: Desk) -> None:
    desk.counts.extra = REFCOUNT_LIMIT // 4 - 1
    desk.sweep()
    assert desk.block.get("headroom_ppm", 0) == FULL_HEADROOM_PPM * 3 // 4
    assert desk.block.get("last_sweep_ns", 0) > 0
