"""The directory of a region's files, and pages that regions have in common."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soak.errors import UsageError
from soak.regions.pages import PageSpan
from soak.regions.soak_directory import MARK, SoakDirectory, check_unclaimed
from tests.soak_support import deterministic

if TYPE_CHECKING:
    from pathlib import Path


def test_a_directory_is_made_marked_and_removed(tmp_path: Path) -> None:
    place = tmp_path / "dax-soak-a"
    check_unclaimed(place)
    claimed = SoakDirectory.claim(place, "run-1")
    (place / "file-00").write_text("x")
    assert json.loads((place / MARK).read_text()) == {"dax-soak": 1, "run_id": "run-1"}
    with pytest.raises(UsageError, match="another soak"):
        SoakDirectory.claim(place, "run-2")
    assert (place / "file-00").exists()
    assert claimed.remove() == []
    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_run_left_is_taken_over(tmp_path: Path) -> None:
    place = tmp_path / "dax-soak-a"
    claimed = SoakDirectory.claim(place, "run-1")
    (place / "file-00").write_text("x")
    os.close(claimed.lock)
    again = SoakDirectory.claim(place, "run-2")
    assert [entry.name for entry in place.iterdir()] == [MARK]
    assert json.loads((place / MARK).read_text())["run_id"] == "run-2"
    (place / "given-up").write_text("x")
    assert again.remove([place / "given-up"]) == ["given-up"]
    assert {entry.name for entry in place.iterdir()} == {MARK, "given-up"}
    check_unclaimed(place)


@pytest.mark.parametrize("mark", [None, b"", b"{}", b"[]", b"\xff", b'{"dax-soak": 2}'])
def test_a_directory_of_somebody_else_is_not_touched(tmp_path: Path, mark: bytes | None) -> None:
    place = tmp_path / "dax-soak-a"
    place.mkdir()
    (place / "file-00").write_text("precious")
    if mark is not None:
        (place / MARK).write_bytes(mark)
    with pytest.raises(UsageError, match="not made by dax-soak"):
        SoakDirectory.claim(place, "run-1")
    assert (place / "file-00").read_text() == "precious"


def test_a_mark_that_is_a_link_is_none(tmp_path: Path) -> None:
    SoakDirectory.claim(tmp_path / "own", "run-1")
    for name, target in (
        ("dax-soak-a", tmp_path / "own"),
        ("dax-soak-b/" + MARK, "../own/" + MARK),
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(target)
        with pytest.raises(UsageError, match="not made by dax-soak"):
            check_unclaimed(tmp_path / name.partition("/")[0])


@given(*[st.integers(0, 20)] * 2, *[st.integers(1, 20)] * 2)
@deterministic
def test_spans_meet_where_they_have_a_page_in_common(
    first: int, second: int, one: int, other: int
) -> None:
    spans = PageSpan(first, one, 1), PageSpan(second, other, 1)
    common = set(range(first, first + one)) & set(range(second, second + other))
    assert spans[0].meets(spans[1]) == spans[1].meets(spans[0]) == bool(common)
