# SPDX-License-Identifier: GPL-2.0-only
"""How a test run is reported: flaky tests, set-ups that fail, and where a failed run is kept."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.program import ROOT
from tests.support.soak import DEADLINE

if TYPE_CHECKING:
    from pathlib import Path

BESIDE = ("--numprocesses", "2", "--dist", "loadgroup", "--no-loadscope-reorder")
HEAD = """
import pytest
from pathlib import Path
HERE = Path(__file__).parent

def times(name):
    with (HERE / name).open("a") as file:
        file.write(".")
    return (HERE / name).stat().st_size
"""
FLAKY = """
@pytest.mark.lab
def test_flaky_{name}():
    assert times("{name}") > 1, "the guest was late"
"""
TELLING = """
from tests.boots.harness.progress_lines import say

@pytest.mark.lab
def test_telling():
    say("boots")
"""
UNIT = """
def test_unit():
    assert times("unit") > 1
"""
SHARED = """
from tests.boots.harness.progress_lines import keep, say

@pytest.fixture
def guest(request, shared):
    return shared.get(request, "guest", make)

def make(place, stack):
    stack.callback(lambda: times("closed"))
    number = times("made")
    if {fails}:
        raise RuntimeError("step 'boot' was late")
    return number

@pytest.mark.lab
@pytest.mark.parametrize("number", range(4))
def test_shared(guest, number):
    assert not (number == {bad} and guest == 1)
"""


def run(place: Path, text: str, *arguments: str) -> tuple[int, str]:
    """Run tests with this project's conftest, as `make test` does."""
    (place / "test_some.py").write_text(HEAD + text)
    (place / "pytest.ini").write_text("[pytest]\nmarkers =\n    lab: x\n    xdist_group: x\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-ra", *arguments, str(place)],
        check=False,
        capture_output=True,
        text=True,
        cwd=place,
        timeout=DEADLINE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("beside", [(), BESIDE], ids=["alone", "beside"])
def test_flaky_lab_test_is_listed_last(tmp_path: Path, beside: tuple[str, ...]) -> None:
    code, said = run(tmp_path, FLAKY.format(name="a"), *beside)
    assert code == 0, said
    assert re.search(
        r"^flaky: .*test_some\.py::test_flaky_a failed first: .*the guest was late", said, re.MULTILINE
    )
    # With the whole of that failure, for its run may be out of reach.
    assert "the first failure of test_some.py::test_flaky_a" in said
    assert said.count('assert times("a") > 1, "the guest was late"') == 1
    assert "1 passed, 1 rerun" in said


def test_three_flaky_tests_fail_the_run(tmp_path: Path) -> None:
    code, said = run(tmp_path, "".join(FLAKY.format(name=name) for name in "abc"), *BESIDE)
    assert code == 1, said
    assert said.count("flaky: ") == 3
    assert "3 tests are flaky, and no more than 2 may be: the run has failed" in said


def test_unit_test_is_not_rerun(tmp_path: Path) -> None:
    code, said = run(tmp_path, UNIT)
    assert code == 1, said
    assert (tmp_path / "unit").read_text() == "."
    assert "flaky" not in said


@pytest.mark.parametrize("beside", [(), BESIDE], ids=["alone", "beside"])
def test_guest_progress_is_printed_during_the_test(tmp_path: Path, beside: tuple[str, ...]) -> None:
    """While the test runs, and though it passes."""
    _, said = run(tmp_path, TELLING, *beside)
    assert re.search(r"^.*0:\d\d test_some::test_telling: boots$", said, re.MULTILINE), said
    assert "1 passed" in said


@pytest.mark.parametrize("beside", [(), BESIDE], ids=["alone", "beside"])
def test_failed_setup_is_reported_once(tmp_path: Path, beside: tuple[str, ...]) -> None:
    code, said = run(tmp_path, SHARED.format(fails=True, bad=None), *beside)
    assert code == 1, said
    assert "3 skipped, 1 error, 1 rerun" in said
    # It was tried once more, and each time what it had was ended.
    assert (tmp_path / "made").read_text() == (tmp_path / "closed").read_text() == ".."
    assert said.count("SKIPPED [3]") == 1
    assert "not run: set-up 'guest' failed, see test_shared[0]" in said
    assert re.search(r"^kept: \S+/guest\d ", said, re.MULTILINE)


def test_setup_that_fails_once_serves_all(tmp_path: Path) -> None:
    code, said = run(tmp_path, SHARED.format(fails="number == 1", bad=None))
    assert code == 0, said
    assert "4 passed, 1 rerun" in said
    assert (tmp_path / "made").read_text() == ".."


def test_rerun_test_gets_a_new_setup(tmp_path: Path) -> None:
    code, said = run(tmp_path, SHARED.format(fails=False, bad=2))
    assert code == 0, said
    assert (tmp_path / "made").read_text() == ".."
    assert "test_shared[2] failed first" in said


def test_longest_lab_tests_start_first(tmp_path: Path) -> None:
    lines = [
        f"@pytest.mark.lab(seconds={seconds})\ndef test_{seconds}(): pass\n" for seconds in (10, 200, 50)
    ]
    _, said = run(tmp_path, "def test_unit(): pass\n" + "".join(lines), "-v")
    assert re.findall(r"::(test_\w+) PASSED", said) == ["test_200", "test_50", "test_10", "test_unit"]
