# SPDX-License-Identifier: GPL-2.0-only
"""A guest that fell asleep while it booted is told from one that is slow, or talks."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from soak.lab.host.standstill import Standstill

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOOKS = 60


@contextmanager
def processor(does: str) -> Iterator[int]:
    with subprocess.Popen(
        [sys.executable, "-c", f"import time; print(flush=True)\n{does}"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


def looks(standstill: Standstill, number: int = LOOKS) -> list[bool]:
    found = []
    for _ in range(number):
        found.append(standstill.look())
        time.sleep(0.005)
    return found


def test_sleeping_silent_guest_stands_still(tmp_path: Path) -> None:
    console = tmp_path / "console.log"
    console.write_text("[    0.3] APIC calibration\n")
    with processor("time.sleep(600)") as pid:
        time.sleep(0.2)
        # Not before it has been looked at for long.
        assert looks(Standstill(pid, console)) == [False] * (LOOKS - 1) + [True]


def test_busy_guest_does_not_stand_still(tmp_path: Path) -> None:
    console = tmp_path / "console.log"
    console.touch()
    with processor("while True: pass") as pid:
        assert not any(looks(Standstill(pid, console), 2 * LOOKS))


def test_guest_with_console_output_does_not_stand_still(tmp_path: Path) -> None:
    console = tmp_path / "console.log"
    console.touch()
    with processor("time.sleep(600)") as pid:
        standstill = Standstill(pid, console)
        for _ in range(4):
            assert not any(looks(standstill, LOOKS // 2))
            with console.open("a") as file:
                file.write("a line\n")


def test_exited_guest_does_not_stand_still(tmp_path: Path) -> None:
    console = tmp_path / "console.log"
    console.touch()
    with processor("") as pid:
        pass
    assert not any(looks(Standstill(pid, console)))
