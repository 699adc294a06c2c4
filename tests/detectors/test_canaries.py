# SPDX-License-Identifier: GPL-2.0-only
"""Canaries as far as they need no DAX: real calls that fail, and detectors that see them or are blind."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from soak.detectors.canaries import kinds as canary_kinds
from soak.detectors.canaries.kinds import (
    Attempt,
    LeakCanary,
    RefusalCanary,
    Result,
    WedgedHelperError,
    make_canaries,
)
from soak.detectors.canaries.runner import Canaries
from soak.detectors.canaries.steps import refused_hold
from soak.detectors.clock import SoakClock
from soak.detectors.refusals import RefusalDetector
from soak.detectors.reporter import Reporter
from soak.journal.writer import FileJournal, read_journal
from soak.ledger.schema import (
    CANARY,
    CANARY_HOLDER,
    CANARY_INVALIDATOR,
    CANARY_REFUSED,
    HOLD_COLUMNS,
    SUPERVISOR,
    WORKER,
)
from soak.model.vocabulary import DetectorName, VerdictWord
from soak.process.helper import HelperError
from soak.process.step_helper import StepHelper
from soak.regions import AnonymousRegion, FsDaxRegion
from soak.regions.pages import PageSpan
from soak.verdict import judge
from soak.workload.pins.vfio_type1 import VFIO_TYPE1
from tests.support.journal import valid_line
from tests.support.processes import children
from tests.support.soak import DEADLINE, make_ledger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from soak.detectors.canaries.kinds import Differences, Steps
    from soak.ledger.writer import BlockWriter
    from soak.workload.pins.long_term import LongTermInterface

RELEASE = (6, 12)
DETECTORS = (DetectorName.REFUSALS, DetectorName.STALLS, DetectorName.LEAKS)


def watching(blocks: list[BlockWriter]) -> RefusalDetector:
    """Return a detector that has judged nothing yet."""
    judged = [memoryview(bytearray(8 * len(block.view("counts")))).cast("Q") for block in blocks]
    return RefusalDetector(blocks, RELEASE, judged)


class Scene:
    """A supervisor's part: a ledger, a journal, a detector of refusals and canaries for it."""

    def __init__(self, directory: Path) -> None:
        self.ledger = ledger = make_ledger(directory / "ledger")
        self.block, self.refused = ledger.block(SUPERVISOR), ledger.block(CANARY_REFUSED)
        self.workers = [
            ledger.block(name) for name, block in ledger.layout.blocks.items() if block.kind == WORKER
        ]
        self.path = directory / "journal.jsonl"
        self.journal = FileJournal(self.path)
        self.reporter = Reporter(self.block, self.journal)
        self.clock = SoakClock()
        # What the next measurements of the regions show.
        self.counts: Iterator[dict[str, int] | None] = iter(())
        self.detector = watching([*self.workers, self.refused])
        self.refusal = RefusalCanary(
            self.refused, self.clock, {"hold of fs-dax": lambda: refused_hold(self.refused, RELEASE)}
        )

    def canaries(self, *kinds: Any, every: float = 600.0) -> Canaries:  # noqa: ANN401 - any canary
        return Canaries(
            self.block,
            self.journal,
            self.reporter,
            kinds,
            every=every,
            differences=lambda: next(self.counts),
        )

    def beat(self, canaries: Canaries) -> None:
        self.clock.beat(time.monotonic_ns())
        for finding in self.detector.look():
            self.reporter.report(finding)
        canaries.look()
        time.sleep(0.01)

    def beat_until_over(self, canaries: Canaries) -> None:
        end = time.monotonic() + DEADLINE
        while canaries.busy:
            assert time.monotonic() < end
            self.beat(canaries)

    def events(self) -> list[dict[str, Any]]:
        return list(read_journal(self.path))

    def count(self, detector: DetectorName, column: str) -> int:
        return self.block.get("canaries", *self.block.index("canaries", detector, column))


class Acting:
    """A canary that does what a test wants."""

    detector = DetectorName.STALLS
    blocks: tuple[BlockWriter, ...] = ()

    def __init__(self, steps: Any) -> None:  # noqa: ANN401 - a generator function
        self._steps = steps
        self.rests = 0

    def go(self, attempt: Attempt) -> Steps:
        yield from self._steps(attempt)

    def asks_for_rest(self) -> bool:
        return False

    def at_rest(self, differences: Differences) -> None:
        self.rests += 1
        differences()


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    before = children()
    yield
    assert children() == before


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary_kinds, "SEEING_SECONDS", 0.3)
    monkeypatch.setattr(canary_kinds, "MAKING_SECONDS", 0.3)


def test_seen_canary_is_not_a_violation(scene: Scene) -> None:
    canaries = scene.canaries(scene.refusal)
    assert canaries.detectors == ["refusals"]
    for _ in range(2):
        canaries.begin_round()
        assert canaries.busy
        scene.beat_until_over(canaries)
    events = scene.events()
    assert [(event["event"], event["detector"]) for event in events] == [("canary.seen", "refusals")] * 2
    assert events[0]["made"] == "hold of fs-dax ended with EFAULT"
    assert scene.count(DetectorName.REFUSALS, "seen") == 2
    assert scene.count(DetectorName.REFUSALS, "missed") == 0
    assert scene.count(DetectorName.REFUSALS, "seen_ns") > 0
    # It was a real call, and is counted as one, in a block that is no worker's.
    assert scene.refused.get("ended") == scene.refused.get("begun") == 2
    assert scene.refused.block.kind == CANARY
    assert not any(scene.block.view("violations"))


@pytest.mark.usefixtures("impatient")
def test_missed_canary_makes_the_verdict_unknown(scene: Scene) -> None:
    scene.detector = watching(scene.workers)
    canaries = scene.canaries(scene.refusal)
    canaries.begin_round()
    scene.beat_until_over(canaries)
    (event,) = scene.events()
    assert (event["event"], event["level"]) == ("canary.missed", "error")
    assert event["detector"] == "refusals"
    assert scene.count(DetectorName.REFUSALS, "missed") == 1
    assert scene.count(DetectorName.REFUSALS, "seen_ns") == 0
    lines = [
        valid_line(1, "run.started", canaries=["refusals"]),
        {**valid_line(2, event["event"]), **event, "seq": 2},
        valid_line(3, "run.ended"),
    ]
    verdict = judge(lines)
    assert verdict.verdict is VerdictWord.UNKNOWN
    assert verdict.reasons == (event["summary"],)
    assert verdict.canaries == ({"detector": "refusals", "made": 1, "seen": 0},)


def test_worker_violation_is_reported_beside_a_canary(scene: Scene) -> None:
    mapper = next(worker for worker in scene.workers if worker.block.name == "mapper-0")
    mapper.add_at("counts", 3, "map fs-dax vfio-type1", "failed EINVAL")
    canaries = scene.canaries(scene.refusal)
    canaries.begin_round()
    scene.beat_until_over(canaries)
    assert {(event["event"], event.get("count")) for event in scene.events()} == {
        ("violation.found", 3),
        ("canary.seen", None),
    }


@pytest.mark.usefixtures("impatient")
def test_failed_canary_does_not_stop_the_others(scene: Scene) -> None:
    def fail() -> Iterator[str]:
        raise OSError(16, "the function is busy")
        yield "never"

    failing = RefusalCanary(scene.refused, scene.clock, {"map": fail})
    hanging = RefusalCanary(scene.refused, scene.clock, {"map": _hang})
    canaries = scene.canaries(failing, hanging, scene.refusal)
    canaries.begin_round()
    scene.beat_until_over(canaries)
    failed = [event for event in scene.events() if event["event"] == "canary.failed"]
    assert {event["level"] for event in failed} == {"warning"}
    assert any("the function is busy" in event["summary"] for event in failed)
    assert any("did not complete its step" in event["summary"] for event in failed)
    assert scene.count(DetectorName.REFUSALS, "seen") == 1
    assert scene.count(DetectorName.REFUSALS, "missed") == 0


def _hang() -> Iterator[str]:
    time.sleep(1000)
    yield "never"


def test_judged_canary_counts_if_undo_fails(scene: Scene) -> None:
    def steps(attempt: Attempt) -> Steps:
        yield
        attempt.results.append(Result("a wait", seen=False))
        raise HelperError("it slept on")

    canaries = scene.canaries(Acting(steps))
    canaries.begin_round()
    scene.beat_until_over(canaries)
    assert [event["event"] for event in scene.events()] == ["canary.missed", "canary.failed"]
    assert scene.count(DetectorName.STALLS, "missed") == 1


def test_wedged_helper_disables_its_canary(scene: Scene) -> None:
    def steps(_: Attempt) -> Steps:
        try:
            yield
        finally:
            raise WedgedHelperError("it hangs")

    wedged, stopped = Acting(steps), Acting(steps)
    canaries = scene.canaries(wedged)
    canaries.begin_round()
    scene.beat_until_over(canaries)
    canaries.begin_round()
    assert not canaries.busy
    other = scene.canaries(stopped)
    other.begin_round()
    scene.beat(other)
    other.stop()
    assert [event["event"] for event in scene.events()] == ["canary.failed"] * 2
    assert "this canary is disabled" in scene.events()[0]["summary"]


def test_canary_under_way_is_not_restarted(scene: Scene) -> None:
    helpers: list[StepHelper] = []

    def steps(_: Attempt) -> Steps:
        helper = StepHelper(_hang)
        helpers.append(helper)
        try:
            while True:
                yield
        finally:
            helper.close()

    canaries = scene.canaries(Acting(steps))
    for _ in range(3):
        canaries.begin_round()
        scene.beat(canaries)
    assert len(helpers) == 1
    canaries.stop()
    assert not canaries.busy
    assert scene.events() == []


def test_disabled_canaries_do_not_run(scene: Scene) -> None:
    canaries = scene.canaries(scene.refusal, every=0.0)
    canaries.begin_round()
    assert canaries.detectors == []
    assert not canaries.busy


@pytest.mark.parametrize(
    ("before", "with_pin", "seen"),
    [
        (0, 1, True),
        (7, 8, True),
        (-1, 0, True),
        (0, 0, False),
        (0, 2, False),
        (0, -1, False),
        (0, 1024, False),
    ],
)
def test_leak_canary_must_add_exactly_one(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, before: int, with_pin: int, *, seen: bool
) -> None:
    monkeypatch.setattr(canary_kinds, "extra_pins", _no_pins)
    leak = LeakCanary(scene.clock, [AnonymousRegion("dax", 4096)])  # type: ignore[list-item]  # a name
    canaries = scene.canaries(leak)
    scene.counts = iter(({"dax": before}, {"dax": with_pin}))
    canaries.begin_round()
    end = time.monotonic() + DEADLINE
    while canaries.busy:
        assert time.monotonic() < end
        scene.beat(canaries)
        canaries.at_rest()
    (event,) = scene.events()
    assert event["event"] == ("canary.seen" if seen else "canary.missed")
    assert event["evidence"] == {"region": "dax", "difference": [before, with_pin]}


def leak_canary(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Canaries:
    """Have a canary of leaks under way, without pages to pin."""
    monkeypatch.setattr(canary_kinds, "extra_pins", _no_pins)
    leak = LeakCanary(scene.clock, [AnonymousRegion("dax", 4096)])  # type: ignore[list-item]  # a name
    canaries = scene.canaries(leak)
    canaries.begin_round()
    return canaries


@pytest.mark.parametrize("deaths", [1, 2, 3])
def test_count_is_repeated_after_a_worker_dies(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, deaths: int
) -> None:
    canaries = leak_canary(scene, monkeypatch)
    whole = ({"dax": 0}, {"dax": 1})
    # Of the two that belong together the one is as good as the other to be spoilt.
    spoilt = [None if number % 2 else {"dax": 0} for number in range(2 * deaths)]
    scene.counts = iter([*spoilt, *whole])
    while canaries.busy:
        scene.beat(canaries)
        canaries.at_rest()
    (event,) = scene.events()
    given_up = deaths == 3
    assert event["event"] == ("canary.failed" if given_up else "canary.seen")
    assert scene.count(DetectorName.LEAKS, "missed") == 0
    assert scene.count(DetectorName.LEAKS, "seen") == (not given_up)


def test_unreadable_counts_fail_only_the_canary(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable() -> Iterator[dict[str, int]]:
        raise OSError("no memory at that address")
        yield {}

    canaries = leak_canary(scene, monkeypatch)
    scene.counts = unreadable()
    while canaries.busy:
        scene.beat(canaries)
        canaries.at_rest()
    (event,) = scene.events()
    assert event["event"] == "canary.failed"
    assert "no memory at that address" in event["summary"]


def test_ready_canary_requests_rest_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the workers did not come to rest at once, it takes the next rest that there is."""
    canaries = leak_canary(scene, monkeypatch)
    asked = 0
    end = time.monotonic() + DEADLINE
    while not asked:
        assert time.monotonic() < end
        scene.beat(canaries)
        asked += canaries.asks_for_rest()
    for _ in range(5):
        scene.beat(canaries)
        assert not canaries.asks_for_rest()
    scene.counts = iter(({"dax": 0}, {"dax": 1}))
    canaries.at_rest()
    scene.beat_until_over(canaries)
    assert [event["event"] for event in scene.events()] == ["canary.seen"]


def _no_pins(*_: object) -> Iterator[str]:
    """Go through the steps, without pages to pin."""
    yield from ("ready", "held", "released", "gone")


def test_only_supported_canaries_are_made(scene: Scene) -> None:
    blocks = {scene.refused.block.name: scene.refused}
    control = AnonymousRegion("control", 4096)

    def made(*long_term: tuple[LongTermInterface, str]) -> list[DetectorName]:
        return [
            canary.detector
            for canary in make_canaries(
                [control],
                blocks.__getitem__,
                scene.clock,
                RELEASE,
                long_term=long_term,
                threshold=2.0,
                swept=[],
            )
        ]

    assert made() == []
    assert made((VFIO_TYPE1, "0000:00:05.0")) == [DetectorName.REFUSALS]


def test_canary_blocks_of_a_dead_supervisor_are_closed(scene: Scene, tmp_path: Path) -> None:
    holder, invalidator = scene.ledger.block(CANARY_HOLDER), scene.ledger.block(CANARY_INVALIDATOR)
    invalidator.set("begun", 3)
    invalidator.set("ended", 2)
    holder.set("holds_begun", 1)
    holder.set("pages_mapped", 5, 1)
    holder.set("pages_unmapped", 4, 1)
    region = FsDaxRegion("files", tmp_path, 8 << 20, PageSpan(0, 2048, 1))
    canaries = make_canaries(
        [region], scene.ledger.block, scene.clock, RELEASE, long_term=(), threshold=2.0, swept=["files"]
    )
    assert [canary.detector for canary in canaries] == list(DETECTORS)
    assert invalidator.get("ended") == 3
    assert holder.get("pages_unmapped", 1) == 5
    assert holder.view("holds")[HOLD_COLUMNS.index("release_after")] > 0
