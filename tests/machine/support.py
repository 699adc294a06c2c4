# SPDX-License-Identifier: GPL-2.0-only
"""A place that the soak may change, for tests of its changes: real files, real locks, real processes."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from soak.errors import UsageError
from soak.machine.changes import Machine, MachineChanges

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SETTINGS = ("vm.one", "kernel.two.three")
BOOT = "00000000-0000-0000-0000-000000000001"
LATER_BOOT = "00000000-0000-0000-0000-000000000002"


@dataclass(frozen=True)
class Place:
    """Settings as files below a directory, and a directory in which the soak makes others."""

    root: Path

    @classmethod
    def make(cls, root: Path) -> Place:
        place = cls(root)
        for name in SETTINGS:
            path = place.setting(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("1000\n")
        (root / "ground").mkdir()
        (root / "ground" / "not ours").write_text("precious")
        return place

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def ground(self) -> Path:
        return self.root / "ground"

    def setting(self, name: str) -> Path:
        return self.root / "sys" / name.replace(".", "/")

    def machine(self, boot: str = BOOT) -> Machine:
        return Machine(self.root / "no sysfs", self.root / "sys", boot)

    def open(self, run_id: str = "run-1", boot: str = BOOT) -> MachineChanges:
        return MachineChanges.open(self.state, run_id, self.machine(boot))

    def snapshot(self) -> dict[str, str]:
        """All that the soak could have changed, by name."""
        files = [path for top in (self.root / "sys", self.ground) for path in top.rglob("*")]
        return {
            str(path.relative_to(self.root)): path.read_text() if path.is_file() else "" for path in files
        }


def perform(place: Place, steps: list[tuple[str, Any]]) -> None:
    """Do what a soak would: open, recover, change, undo some of it, put the rest back."""
    with place.open() as changes:
        changes.recover()
        for step, argument in steps:
            with contextlib.suppress(UsageError):
                if step == "set":
                    name, value = argument
                    changes.set_sysctl(name, str(value))
                elif step == "make":
                    directory = changes.make_directory(place.ground / argument)
                    (directory / "below").mkdir()
                    (directory / "below" / "file").write_text("scratch")
                    (directory / "link").symlink_to(place.ground)
                elif changes.held:
                    changes.undo(changes.held[argument % len(changes.held)].number)
        changes.restore()


def killed_at(call: int, work: Callable[[], None]) -> bool:
    """Do `work` in a process that is killed at a call of a C function, by number; False if it had ended.

    Calls of its helpers count as well. A helper is not killed with it: it goes on for as long as the
    kernel lets it, as after a real SIGKILL.
    """
    counter = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")
    pid = os.fork()
    if pid == 0:
        victim = os.getpid()

        def count(_frame: object, event: str, _function: object) -> None:
            if event in {"c_call", "c_return"}:
                counter[0] += 1
                if counter[0] == call:
                    os.kill(victim, signal.SIGKILL)

        code = 1
        try:
            sys.setprofile(count)
            work()
            sys.setprofile(None)
            code = 0
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in {0, -signal.SIGKILL}, "the work itself failed"
    return status != 0
