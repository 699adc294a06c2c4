# SPDX-License-Identifier: GPL-2.0-only
"""Signs of life of a guest, counted by what its machine had of a processor."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from soak.lab.host.processor_share import ProcessorShare
from soak.lab.host.signs_of_life import Life, SignsOfLife

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SILENT, STUCK, PREPARE = 60, 180, 600


@pytest.mark.parametrize(("ready", "limit"), [(True, SILENT), (False, PREPARE)])
def test_guest_is_silent_after_the_beat_limit(limit: int, *, ready: bool) -> None:
    signs = SignsOfLife()
    assert signs.look(1, 0, 1.0, ready=ready) is Life.MOVES
    for _ in range(limit - 1):
        assert signs.look(1, 0, 1.0, ready=ready) is not Life.SILENT
    assert signs.look(1, 0, 1.0, ready=ready) is Life.SILENT
    assert signs.look(1, 0, 1.0, ready=ready) is not Life.SILENT


def test_guest_without_cpu_time_is_not_silent() -> None:
    signs = SignsOfLife()
    little = 0.05
    for _ in range(int(SILENT / little) - 1):
        assert signs.look(0, 0, little, ready=True) is not Life.SILENT
    assert signs.look(0, 0, 1.0, ready=True) is Life.SILENT


def test_supervisor_without_progress_is_stuck() -> None:
    signs = SignsOfLife()
    for beat in range(1, STUCK):
        assert signs.look(beat, 7, 1.0, ready=True) is Life.MOVES
    signs.look(STUCK, 7, 1.0, ready=True)
    assert signs.look(STUCK + 1, 7, 1.0, ready=True) is Life.STUCK
    assert signs.look(STUCK + 2, 8, 1.0, ready=True) is Life.MOVES


@contextlib.contextmanager
def processes(number: int, work: Callable[[], None]) -> Iterator[list[int]]:
    """Run processes on one processor until the block ends."""
    pids = []
    try:
        for _ in range(number):
            pid = os.fork()
            if pid == 0:
                signal.alarm(60)
                os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
                work()
                os._exit(0)
            pids.append(pid)
        yield pids
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def spin() -> None:
    while True:
        pass


def share(pid: int, seconds: float) -> float:
    looked = ProcessorShare(pid)
    looked.look()
    time.sleep(seconds)
    return looked.look()


def test_processes_on_one_cpu_share_it() -> None:
    with processes(5, spin) as pids:
        assert share(pids[0], 2.0) < 0.5


def test_sleeping_process_does_not_lack_a_cpu() -> None:
    with processes(1, signal.pause) as pids:
        assert share(pids[0], 0.5) > 0.9


def test_exited_process_does_not_lack_a_cpu() -> None:
    with processes(1, signal.pause) as pids:
        looked = ProcessorShare(pids[0])
    assert looked.look() == 1.0
