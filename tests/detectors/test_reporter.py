# SPDX-License-Identifier: GPL-2.0-only
"""The reporter: the first of a kind at once, what follows gathered, and nothing lost."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soak.detectors import reporter as reporter_module
from soak.detectors.base import Finding
from soak.detectors.reporter import Reporter
from soak.journal.writer import Level
from soak.ledger.schema import NO_KNOWN_ISSUE
from soak.model.vocabulary import Interface, Operation, RegionKind, Violation
from tests.support.soak import KNOWN_ISSUE, deterministic, make_ledger

if TYPE_CHECKING:
    from soak.ledger.writer import BlockWriter

FOREVER = float("inf")


class Lines:
    """A journal that keeps what it is given, and what was counted at that moment."""

    def __init__(self, block: BlockWriter) -> None:
        self.errors = 0
        self.written: list[dict[str, Any]] = []
        self.counted: list[int] = []
        self._block = block

    def write(self, event: str, level: Level = Level.INFO, **fields: Any) -> None:  # noqa: ANN401 - as the protocol has it
        assert event == "violation.found"
        self.written.append({"level": level, **fields})
        self.counted.append(sum(self._block.view("violations")))

    def retry(self) -> None:
        pass

    def close(self) -> None:
        pass


class Desk:
    def __init__(self, directory: Path) -> None:
        self.block = make_ledger(directory / "ledger").block("supervisor")
        self.journal = Lines(self.block)
        self.reporter = Reporter(self.block, self.journal)

    def counted(self) -> dict[tuple[str, str], int]:
        return {
            (kind, issue): count
            for kind in Violation
            for issue in (KNOWN_ISSUE, NO_KNOWN_ISSUE)
            if (count := self.block.get("violations", *self.block.index("violations", kind, issue)))
        }


def finding(
    count: int = 1,
    kind: Violation = Violation.WRONG_ERRNO,
    *,
    issue: str | None = None,
    summary: str = "map ended with EFAULT",
    region: RegionKind = RegionKind.FS_DAX,
    name: str | None = None,
) -> Finding:
    return Finding(
        kind, region, Interface.VFIO_TYPE1, Operation.MAP, count, summary, name, issue, {"n": count}
    )


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(reporter_module, "REPORT_SECONDS", FOREVER)
    return Desk(tmp_path)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("soak.detectors.reporter.time.monotonic", lambda: now[0])
    return now


def test_first_violation_is_written_at_once(desk: Desk) -> None:
    for count in (2, 3, 4):
        desk.reporter.report(finding(count))
    assert [line["count"] for line in desk.journal.written] == [2]
    desk.reporter.flush()
    assert [line["count"] for line in desk.journal.written] == [2, 7]
    desk.reporter.flush()
    assert len(desk.journal.written) == 2
    assert desk.counted() == {("wrong-errno", "none"): 9}


def test_merged_violations_are_written_after_the_interval(tmp_path: Path, clock: list[float]) -> None:
    desk = Desk(tmp_path)
    interval = reporter_module.REPORT_SECONDS
    desk.reporter.report(finding(1))
    clock[0] += interval / 2
    desk.reporter.report(finding(10))
    desk.reporter.flush(interval)
    assert len(desk.journal.written) == 1
    clock[0] += interval / 2
    desk.reporter.flush(interval)
    assert [line["count"] for line in desk.journal.written] == [1, 10]
    clock[0] += interval
    desk.reporter.report(finding(100))
    assert [line["count"] for line in desk.journal.written] == [1, 10, 100]


def test_violation_is_written_before_it_is_counted(desk: Desk) -> None:
    desk.reporter.report(finding(5))
    desk.reporter.report(finding(6, Violation.UNEXPECTED_PIN))
    desk.reporter.report(finding(7))
    desk.reporter.flush()
    assert desk.journal.counted == [0, 5, 11]


@pytest.mark.parametrize(
    "other",
    [
        finding(kind=Violation.UNEXPECTED_REFUSAL),
        finding(summary="map ended with EINVAL"),
        finding(issue=KNOWN_ISSUE),
        finding(region=RegionKind.DEVICE_DAX),
        finding(name="another"),
    ],
)
def test_different_violations_are_not_merged(desk: Desk, other: Finding) -> None:
    desk.reporter.report(finding())
    desk.reporter.report(other)
    assert len(desk.journal.written) == 2


def test_leaks_with_different_numbers_are_merged(desk: Desk) -> None:
    for count in (1, 2, 3):
        desk.reporter.report(finding(count, Violation.LEAK, summary=f"{count} pages differ"))
    desk.reporter.flush()
    assert [(line["count"], line["summary"]) for line in desk.journal.written] == [
        (1, "1 pages differ"),
        (5, "3 pages differ"),
    ]


def test_journal_line_has_all_fields(desk: Desk) -> None:
    desk.reporter.report(finding(4, name="files"))
    assert desk.journal.written == [
        {
            "level": Level.ERROR,
            "kind": "wrong-errno",
            "region": "fs-dax",
            "region_name": "files",
            "interface": "vfio-type1",
            "operation": "map",
            "count": 4,
            "known_issue": None,
            "undecided": None,
            "summary": "map ended with EFAULT",
            "evidence": {"n": 4},
        }
    ]


def test_known_issue_is_a_warning(desk: Desk) -> None:
    desk.reporter.report(finding(issue=KNOWN_ISSUE))
    assert desk.journal.written[0]["level"] is Level.WARNING
    assert desk.journal.written[0]["known_issue"] == KNOWN_ISSUE
    assert desk.counted() == {("wrong-errno", KNOWN_ISSUE): 1}


def test_unexpected_pins_are_counted_by_region(desk: Desk) -> None:
    desk.reporter.report(finding(3, Violation.UNEXPECTED_PIN))
    desk.reporter.report(finding(2))
    position = desk.block.index("unexpected_pins", RegionKind.FS_DAX, Interface.VFIO_TYPE1)
    assert desk.block.get("unexpected_pins", *position) == 3
    assert sum(desk.block.view("unexpected_pins")) == 3


findings = st.builds(
    finding,
    st.integers(1, 1000),
    st.sampled_from(list(Violation)),
    issue=st.sampled_from([None, KNOWN_ISSUE]),
    summary=st.sampled_from(["one", "two"]),
    region=st.sampled_from(list(RegionKind)),
    name=st.sampled_from([None, "a", "b"]),
)


@given(st.lists(findings | st.just("flush"), max_size=40), st.sampled_from([0.0, FOREVER]))
@deterministic
def test_no_violation_is_lost(steps: list[Any], interval: float) -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        mock.patch.object(reporter_module, "REPORT_SECONDS", interval),
    ):
        desk = Desk(Path(directory))
        reported: Counter[tuple[str, str]] = Counter()
        for step in steps:
            if step == "flush":
                desk.reporter.flush()
            else:
                desk.reporter.report(step)
                reported[step.kind, step.known_issue or NO_KNOWN_ISSUE] += step.count
            written: Counter[tuple[str, str]] = Counter()
            for line in desk.journal.written:
                written[line["kind"], line["known_issue"] or NO_KNOWN_ISSUE] += line["count"]
            assert desk.counted() == written
        desk.reporter.flush()
        assert desk.counted() == reported
