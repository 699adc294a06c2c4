# SPDX-License-Identifier: GPL-2.0-only
"""When a region is recycled, and what becomes of its books: the pages themselves are the lab's tests."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from soak.detectors.leaks import recycler as recycler_module
from soak.detectors.leaks.measure import REFCOUNT_LIMIT
from soak.detectors.leaks.recycler import Recycler
from soak.ledger.schema import NO_KNOWN_ISSUE
from soak.model.vocabulary import Role
from soak.process.child import fork
from tests.detectors.leak_support import REFUTED, Desk
from tests.support.soak import DEADLINE

if TYPE_CHECKING:
    from pathlib import Path

    from soak.model.kernels import Release

RELEASE = (6, 1)
HANGING = (5, 10)
THRESHOLD = 0.2


class Driver:
    """Where a device is taken from its driver and given back; its pages are new then."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place = place / "driver"
        self.place.mkdir()
        monkeypatch.setattr(recycler_module, "_DRIVER", self.place)

    @property
    def rebound(self) -> bool:
        return {path.name for path in self.place.iterdir()} == {"bind", "unbind"}


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    return Driver(tmp_path, monkeypatch)


def made(desk: Desk, release: Release = RELEASE, threshold: float = THRESHOLD) -> Recycler:
    desk.shows = REFUTED
    desk.sweeper.prepare()
    return Recycler(
        desk.block,
        desk.journal,
        desk.pool,
        desk.sweeper,
        [desk.watch],
        threshold=threshold,
        release=release,
    )


def use(desk: Desk, share: float) -> None:
    """Have the worst page carry that share of what a count can hold."""
    desk.counts.extra = int(REFCOUNT_LIMIT * share)
    desk.sweeper.prepare()


def test_a_region_with_room_is_left_alone(tmp_path: Path, driver: Driver) -> None:
    desk = Desk(tmp_path, recyclable=True)
    recycler = made(desk)
    assert recycler.make_room() is None
    use(desk, 0.1)
    assert recycler.due() == []
    assert not driver.rebound


def test_it_is_due_before_it_is_short(tmp_path: Path) -> None:
    """The next interval may take twice what this one did."""
    desk = Desk(tmp_path, recyclable=True)
    recycler = made(desk)
    recycler.make_room()
    use(desk, 0.25)
    assert recycler.due() == []
    use(desk, 0.5)
    # Half is left, and 0.5 may go by the next time.
    assert recycler.due() == ["dax"]


def test_recycling_goes_on_with_the_books(tmp_path: Path, driver: Driver) -> None:
    desk = Desk(tmp_path, recyclable=True)
    recycler = made(desk)
    desk.counts.extra += 5
    desk.sweep()
    before = desk.leaks()[f"leaked_total {NO_KNOWN_ISSUE}"]
    assert before == 5
    desk.counts.extra = 0  # as the driver makes the pages new
    assert recycler.recycle("dax") is None
    assert driver.rebound
    (event,) = (event for event in desk.events() if event["event"] == "region.recycled")
    assert event["leaked"] == 5
    # What is gone with the old pages stays counted, and is no leak of the new ones.
    assert desk.sweep() == []
    assert desk.leaks()[f"leaked_total {NO_KNOWN_ISSUE}"] == 5
    assert desk.leaks()[f"leaked {NO_KNOWN_ISSUE}"] == 0


def test_what_earlier_soaks_used_up_is_made_new_before_the_start(tmp_path: Path, driver: Driver) -> None:
    desk = Desk(tmp_path, recyclable=True)
    use(desk, 0.995)
    assert made(desk).make_room() is None
    assert driver.rebound


@pytest.mark.parametrize(
    ("recyclable", "release", "how"),
    [(False, RELEASE, "'recyclable = true'"), (True, HANGING, "this kernel hangs")],
)
def test_one_that_cannot_be_recycled_ends_the_run(
    tmp_path: Path, driver: Driver, *, recyclable: bool, release: tuple[int, int], how: str
) -> None:
    desk = Desk(tmp_path, recyclable=recyclable)
    use(desk, 0.995)
    assert made(desk, release).make_room() == "the reference counts of region dax are nearly full"
    (event,) = (event for event in desk.events() if event["event"] == "limit.reached")
    assert how in event["summary"]
    assert not driver.rebound


def test_a_device_that_does_not_come_back_ends_the_run(
    tmp_path: Path, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recycler_module, "_APPEAR_SECONDS", 0.1)
    desk = Desk(tmp_path, recyclable=True)
    recycler = made(desk)
    (tmp_path / "dax0.0").unlink()
    why = recycler.recycle("dax")
    assert why is not None
    assert "could not be recycled" in why
    assert driver.rebound


def test_recycling_restarts_the_mappers_and_no_others(tmp_path: Path, driver: Driver) -> None:
    """While they hold it mapped, the driver would wait for them."""
    desk = Desk(tmp_path, recyclable=True)
    recycler = made(desk)
    desk.pool.start()
    assert desk.pool.pause(DEADLINE, lambda: None) == []
    before = {member.plan.role: member.pid for member in desk.pool.workers}
    desk.worker.set("pages_mapped", desk.worker.get("pages_unmapped", 0) + 3, 0)
    desk.counts.extra += 3  # which the kernel does not give back as the mapper ends
    assert recycler.recycle("dax") is None
    after = {member.plan.role: member.pid for member in desk.pool.workers}
    assert driver.rebound
    assert after[Role.MAPPER] not in {0, before[Role.MAPPER]}
    assert after[Role.INVALIDATOR] == before[Role.INVALIDATOR]
    assert desk.worker.get("pages_mapped", 0) == desk.worker.get("pages_unmapped", 0)
    # The sweep between its end and the new pages has seen what stayed.
    assert desk.leaks()[f"leaked_total {NO_KNOWN_ISSUE}"] == 3
    desk.pool.stop(DEADLINE, lambda: None)


def test_a_mapper_that_does_not_end_prevents_recycling(
    tmp_path: Path, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recycler_module, "_END_SECONDS", -1.0)
    desk = Desk(tmp_path, recyclable=True)
    recycler = made(desk)
    mapper = next(member for member in desk.pool.workers if member.plan.role is Role.MAPPER)
    mapper.pid = fork(partial(time.sleep, DEADLINE))
    why = recycler.recycle("dax")
    assert why == f"region dax could not be recycled: {mapper.plan.name} did not end"
    assert not driver.rebound
    (event,) = (event for event in desk.events() if event["event"] == "limit.reached")
    assert (event["limit"], event["summary"]) == ("recycle", why)


def test_a_threshold_of_zero_recycles_nothing(tmp_path: Path, driver: Driver) -> None:
    desk = Desk(tmp_path, recyclable=True)
    use(desk, 0.9)
    recycler = made(desk, threshold=0.0)
    assert recycler.make_room() is None
    use(desk, 0.995)
    assert recycler.due() == ["dax"]
    assert recycler.recycle("dax") == "the reference counts of region dax are nearly full"
    assert not driver.rebound
