# SPDX-License-Identifier: GPL-2.0-only
"""Whatever the moment at which a soak is killed, the next one puts back what it had changed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soak.machine.changes import FAILED, restore_only
from tests.machine import kill_each
from tests.machine.kill_each import CHANGES
from tests.machine.support import LATER_BOOT, SETTINGS, Place, killed_at, perform
from tests.support.program import ROOT
from tests.support.soak import deterministic

if TYPE_CHECKING:
    from collections.abc import Callable

_steps = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.tuples(st.sampled_from(SETTINGS), st.integers(2000, 2003))),
        st.tuples(st.just("make"), st.sampled_from(["scratch", "other"])),
        st.tuples(st.just("undo"), st.integers(0, 3)),
    ),
    min_size=1,
    max_size=3,
)
# Three changes take about this many calls; a number beyond the last kills nobody.
_MOST_CALLS = 10_000


@given(steps=_steps, call=st.integers(1, _MOST_CALLS), again=st.integers(1, _MOST_CALLS))
@settings(deterministic, max_examples=60)
def test_a_kill_at_any_call_is_undone(steps: list[tuple[str, Any]], call: int, again: int) -> None:
    """The one that puts it back is killed as well, and the one after that has to do."""
    with tempfile.TemporaryDirectory() as directory:
        place = Place.make(Path(directory))
        before = place.snapshot()
        killed_at(call, lambda: perform(place, steps))
        killed_at(again, lambda: void(restore_only(place.state, place.machine())))
        settled = restore_only(place.state, place.machine())
        assert [item.summary for item in settled if item.event == FAILED] == []
        assert place.snapshot() == before
        with place.open() as changes:
            assert changes.held == ()


@pytest.mark.takes(seconds=20)
@pytest.mark.parametrize("kind", CHANGES)
def test_a_kill_within_one_change_is_undone(tmp_path: Path, kind: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", kill_each.__name__, str(tmp_path), kind],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


@given(steps=_steps, call=st.integers(1, _MOST_CALLS))
@settings(deterministic, max_examples=20)
def test_after_a_reboot_only_files_are_removed(steps: list[tuple[str, Any]], call: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        place = Place.make(Path(directory))
        files = place.snapshot().keys()
        killed_at(call, lambda: perform(place, steps))
        # A machine that boots has its own values, whatever they were.
        for name in SETTINGS:
            place.setting(name).write_text("3000\n")
        settled = restore_only(place.state, place.machine(LATER_BOOT))
        assert {item.kind for item in settled if item.event == "change.restored"} <= {"directory"}
        assert {item.kind for item in settled if item.event == "change.forgotten"} <= {"sysctl"}
        assert place.snapshot().keys() == files
        assert {place.setting(name).read_text() for name in SETTINGS} == {"3000\n"}


def test_the_next_start_waits_for_surviving_helpers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that takes its time to load a module, and does not die with the soak."""
    place = Place.make(tmp_path)
    program = tmp_path / "modprobe"
    program.write_text(f"#!/bin/sh\n: > {tmp_path}/begun\nsleep 1\n: > {tmp_path}/ended\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    pid = os.fork()
    if pid == 0:
        try:
            with place.open() as changes:
                changes.load_module("vfio-pci")
        finally:
            os._exit(1)
    wait_until((tmp_path / "begun").exists)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert not (tmp_path / "ended").exists()
    with place.open() as changes:
        assert (tmp_path / "ended").exists()
        assert [item.kind for item in changes.recover()] == ["module"]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def void(_: object) -> None:
    pass
