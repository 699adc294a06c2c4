# SPDX-License-Identifier: GPL-2.0-only
"""What a run leaves at its end: verdict and report, on disk and on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import given

from soak.report.text import publish, text_report
from soak.verdict import judge
from tests.program.test_verdict import ENDED, GOOD, Event, event_lists, lines, violation, word
from tests.support.soak import KNOWN_ISSUE, deterministic

if TYPE_CHECKING:
    import pytest


def test_the_files_are_written_whole_and_for_everybody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "verdict.json"
    path.write_text("an older one")
    verdict = judge(lines(GOOD))
    publish(verdict, tmp_path)
    assert path.read_text() == verdict.to_json()
    assert (tmp_path / "report.txt").read_text() == capsys.readouterr().out
    assert {file.name for file in tmp_path.iterdir()} == {"verdict.json", "report.txt"}
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o644}


def test_what_cannot_be_written_is_printed_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "gone"
    publish(judge(lines(GOOD)), directory)
    told = capsys.readouterr()
    assert "\nverdict   PASS\n" in told.out
    assert "cannot write" in told.err
    assert f"'dax-soak report {directory}'" in told.err


@given(event_lists)
@deterministic
def test_a_report_fits_a_terminal(events: list[Event]) -> None:
    report = text_report(judge(lines(events)), Path("/run"))
    assert all(len(line) < 80 for line in report.splitlines())
    # What stays on the screen when all has scrolled by.
    assert report.endswith(f"\nverdict   {word(events).upper()}\n")


def test_what_nothing_explains_stands_before_a_line_for_each_known_issue() -> None:
    known = [violation(issue=KNOWN_ISSUE), violation("stall", issue=KNOWN_ISSUE)]
    events = [*GOOD[:3], *known, violation(issue=KNOWN_ISSUE), violation("wrong-errno"), ENDED]
    report = text_report(judge(lines(events)), Path("/run"))
    unexplained, expected = (
        report.index("unexplained\n  wrong-errno, 3 times"),
        report.index("expected"),
    )
    assert unexplained < expected
    assert f"  {KNOWN_ISSUE}: leak, 6 page references, first in event 4\n" in report
    assert f"  {KNOWN_ISSUE}: stall, 3 times, first in event 5\n" in report
