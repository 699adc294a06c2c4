# SPDX-License-Identifier: GPL-2.0-only
"""What a program in the guest uses: reports to the test outside, tools, processes, PCI functions."""

from __future__ import annotations

import faulthandler
import json
import os
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from soak.machine.pci import objections

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# For single commands, which end what hangs for ever; whatever moves is waited for.
DEADLINE: Final = 900.0
# The guest's console has the traceback, and whoever waits for the script gives up later.
_QUIET_SECONDS: Final = 240.0
_DEVICES: Final = Path("/sys/bus/pci/devices")


def report(name: str, value: object) -> None:
    """Print a fact, as a line of JSON. A program that then prints nothing for long shows where it is."""
    # One whose children have a PID namespace of their own can start no thread.
    with suppress(RuntimeError):
        faulthandler.dump_traceback_later(_QUIET_SECONDS)
    sys.stdout.write(json.dumps([name, value]) + "\n")
    sys.stdout.flush()


def step(what: str) -> None:
    """Report what comes next: the test that waits prints it, and names it where it was the last."""
    report("step", what)


def play(scenes: Mapping[str, Callable[[], object]]) -> None:
    """Run one scene after the other, and report the result of each."""
    for name, scene in scenes.items():
        step(name)
        report(name, scene())


def objections_to(address: str) -> str:
    """Return why a PCI function must not be given to vfio; empty where it may be."""
    return "; ".join(objection.text() for objection in objections(address))


def run_tool(*words: str) -> None:
    """Run a program of the guest, which must succeed."""
    subprocess.run(words, check=True, capture_output=True, timeout=120)


@contextmanager
def elsewhere(act: Callable[[], object]) -> Iterator[int]:
    """Have another process do something, and live on meanwhile."""
    (done_out, done_in), (end_out, end_in) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(end_in)
        act()
        os.write(done_in, b".")
        os.read(end_out, 1)
        os._exit(0)
    os.read(done_out, 1)
    yield pid
    os.close(end_in)
    os.waitpid(pid, 0)


def functions() -> list[str]:
    return sorted(
        path.name for path in _DEVICES.iterdir() if (path / "device").read_text().strip() == "0x11e8"
    )


def bound() -> list[str]:
    return [name for name in functions() if (_DEVICES / name / "driver").exists()]
