# SPDX-License-Identifier: GPL-2.0-only
"""Runs in the guest of a lab: changes a real kernel as a soak does, and is killed at it.

It reports what it saw, scene by scene; the test that sent it asserts.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soak.abi.modules import delete_module
from soak.abi.procfs import symbol_address
from soak.abi.vfio import Container
from soak.machine.changes import Demand, MachineChanges, Settled, raise_limits, restore_only
from soak.machine.changes.modules import MODULES
from soak.process.helper import in_helper
from tests.boots.harness.in_guest import play, report, step

if TYPE_CHECKING:
    from collections.abc import Callable

STATE = Path("/run/dax-soak-state")
RECORD = STATE / "changes.json"
VFIO_PCI = Path("/sys/bus/pci/drivers/vfio-pci")
DAX = Path("/mnt/dax")
PCI = Path("/sys/bus/pci/devices")
KPTR = Path("/proc/sys/kernel/kptr_restrict")
# What is changed one after the other, each of which is in the record before it is made.
CHANGES = ("module", "binding", "sysctl", "directory")
# At any moment, after each of those has been a moment of death: 'make soak-long' changes this line.
ROUNDS = 3
SECONDS = 60.0


def functions(*identity: str) -> list[str]:
    return sorted(
        path.name
        for path in PCI.iterdir()
        if tuple((path / name).read_text().strip() for name in ("vendor", "device")) == identity
    )


# A function without a driver, and one that its driver has (the random number generator).
EDU = functions("0x1234", "0x11e8")[0]
RNG = functions("0x1af4", "0x1005")[0]


def driver(function: str) -> str | None:
    with contextlib.suppress(FileNotFoundError):
        return (PCI / function / "driver").readlink().name
    return None


def loaded() -> list[str]:
    names = MODULES["vfio-pci"].brings
    return [name for name in names if Path(f"/sys/module/{name}/initstate").exists()]


def snapshot() -> dict[str, Any]:
    return {
        "drivers": {function: driver(function) for function in (EDU, RNG)},
        "overrides": {
            function: (PCI / function / "driver_override").read_text() for function in (EDU, RNG)
        },
        "kptr_restrict": KPTR.read_text(),
        "files": sorted(path.name for path in DAX.iterdir()),
        "modules": loaded(),
    }


def told(settled: list[Settled]) -> list[str]:
    return [f"{item.event} {item.kind}: {item.summary}" for item in settled]


def change_all(changes: MachineChanges) -> Path:
    changes.load_module("vfio-pci")
    changes.bind(EDU)
    changes.bind(RNG)
    changes.set_sysctl("kernel.kptr_restrict", "1")
    directory = changes.make_directory(DAX / "scratch")
    (directory / "file").write_bytes(b"x" * 4096)
    return directory


def ordinary() -> dict[str, Any]:
    """Change everything, look, and put everything back."""
    with MachineChanges.open(STATE, "ordinary") as changes:
        change_all(changes)
        changed = snapshot()
        settled = changes.restore()
    return {"changed": changed, "told": told(settled), "restored": snapshot()}


def killed() -> list[dict[str, Any]]:
    """Kill a process that changes everything and puts it back, at any moment, many times."""
    chance = random.Random(1)  # noqa: S311 - not for secrets
    rounds: list[dict[str, Any]] = []
    began = time.monotonic()
    change_and_restore()
    longest = time.monotonic() - began
    kinds = [kind for kind in CHANGES if kind != "module" or not VFIO_PCI.exists()]
    for kind in (*kinds, *[None] * ROUNDS):
        step(f"death {len(rounds) + 1}, {kind or 'at any moment'}")
        moment = chance.uniform(0, longest)
        while not killed_at(kind, moment):
            pass
        settled = restore_only(STATE)
        rounds.append({"told": told(settled), "restored": snapshot()})
    return rounds


def killed_at(kind: str | None, seconds: float) -> bool:
    """Kill a process that changes everything: when a change is in the record, or after a while.

    False where it had come to its end before it was seen to make that change.
    """
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            change_and_restore()
        os._exit(0)
    if kind is None:
        time.sleep(seconds)
    while kind is not None and kind not in recorded():
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


def recorded() -> set[str]:
    """Return the kinds of change that are in the soak's record."""
    with contextlib.suppress(FileNotFoundError):
        return {entry["kind"] for entry in json.loads(RECORD.read_text())["entries"]}
    return set()


def change_and_restore() -> None:
    with MachineChanges.open(STATE, "killed") as changes:
        change_all(changes)
        changes.restore()


def in_use() -> dict[str, Any]:
    """Try to give back a function that somebody keeps open: unbinding it waits for that one."""
    with MachineChanges.open(STATE, "in-use") as changes:
        changes.load_module("vfio-pci")
        changes.bind(RNG)
        container = Container(RNG)
        hung = told(changes.restore())
        held = [entry.kind for entry in changes.held]
        container.close()
    return {"hung": hung, "held": held, "told": until_restored(), "restored": snapshot()}


def taken_by_somebody() -> dict[str, Any]:
    """Somebody else takes over while the soak has the function: what is theirs is left alone."""
    with MachineChanges.open(STATE, "taken") as changes:
        changes.load_module("vfio-pci")
        changes.bind(EDU)
        (PCI / EDU / "driver_override").write_text("somebody-else\n")
        KPTR.write_text("0")
        changes.set_sysctl("kernel.kptr_restrict", "1")
        KPTR.write_text("2")
        settled = told(changes.restore())
        held = len(changes.held)
    found = snapshot()
    (PCI / EDU / "driver/unbind").write_text(EDU)
    (PCI / EDU / "driver_override").write_text("\n")
    return {"told": settled, "held": held, "found": found}


def addresses() -> dict[str, Any]:
    """The one kernel setting that a detector cannot do without, as strict as it gets."""
    KPTR.write_text("2")
    hidden = in_helper(_address_shown, SECONDS)
    with MachineChanges.open(STATE, "addresses") as changes:
        settled: list[Settled] = []
        with changes.readable_addresses(settled.append):
            shown = in_helper(_address_shown, SECONDS)
        after = KPTR.read_text().strip()
        needs = changes.tune(Demand(aio_contexts=8, mappings=64))
        many = changes.tune(Demand(aio_contexts=1 << 20, mappings=1 << 20))
        tuned = {entry.target: entry.facts for entry in changes.held}
        restored = told(changes.restore())
    return {
        "hidden": not hidden,
        "shown": shown,
        "after": after,
        "needs": needs,
        "many": len(many),
        "tuned": tuned,
        "told": told(settled) + restored,
    }


def _address_shown() -> bool:
    try:
        return symbol_address("vmemmap_base") > 0
    except LookupError:
        return False


def until_restored() -> list[str]:
    """Restore until nothing is left: what hung in the kernel ends in its own time."""
    settled: list[Settled] = []

    def restored() -> bool:
        settled[:] = restore_only(STATE)
        return all(item.event != "change.failed" for item in settled)

    wait_for(restored)
    return told(settled)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.05)


def main() -> None:
    KPTR.write_text("2")
    for module in loaded():
        # What the lab has loaded: here the soak is to find a machine without it.
        with contextlib.suppress(OSError):
            delete_module(module)
    report("before", snapshot())
    scenes = (ordinary, killed, in_use, addresses, taken_by_somebody)
    play({scene.__name__: scene for scene in scenes})
    # Containers take root's right to this away; here it is there.
    report("limits", in_helper(raise_limits, SECONDS))
    report("most_files", int(Path("/proc/sys/fs/nr_open").read_text()))


if __name__ == "__main__":
    main()
