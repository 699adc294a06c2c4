"""What a run leaves at its end: verdict and report, on disk and on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from soak.report.text import publish
from soak.verdict import judge
from tests.test_verdict import GOOD, lines

if TYPE_CHECKING:
    from pathlib import Path

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
    assert "cannot be written" in told.err
    assert f"'dax-soak report {directory}'" in told.err
