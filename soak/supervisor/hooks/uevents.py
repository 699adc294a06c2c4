# SPDX-License-Identifier: GPL-2.0-only
"""Devices that come and go while a soak runs, heard from the kernel and written down.

A run whose own device goes ends with a sentence. A process of its own listens, because pyroute2 is slow
to import in a guest and wants one thread for a socket, from its making to its end. It hands on lines of
JSON over a pipe.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from soak.abi.netlink import uevents
from soak.journal.writer import Level
from soak.process.child import fork, serve_parent
from soak.regions import DeviceDaxRegion, FsDaxRegion
from soak.supervisor.hooks.base import Hook

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from soak.journal.writer import Journal
    from soak.regions import Region

_CHUNK: Final = 65536
_NICENESS: Final = 19
_SUBSYSTEMS: Final = frozenset(("nd", "dax", "pci", "vfio", "vfio-dev", "iommu", "block"))
# Lines that a kernel which talks a lot may have written in one beat; the rest has its turn later.
_MOST_AT_ONCE: Final = 64
_GOING: Final = frozenset(("remove", "unbind", "offline"))
_PCI: Final = Path("/sys/bus/pci/devices")
_DAX: Final = Path("/sys/bus/dax/devices")
_VFIO: Final = "vfio-pci"


def things_in_use(regions: Sequence[Region], functions: Iterable[str]) -> dict[str, Path]:
    """Return what a run cannot do without: names that uevents use, and the driver that proves them."""
    used = {function: _PCI / function / "driver" for function in functions}
    for region in regions:
        if isinstance(region, DeviceDaxRegion):
            name = region.path.name
            used[name] = _DAX / name / "driver"
        elif isinstance(region, FsDaxRegion):
            disk = Path("/sys/dev/block") / region.disk
            used[disk.resolve().name] = disk
    return used


class UeventWatch(Hook):
    """Listens from the moment when the workers have started to their end."""

    def __init__(self, journal: Journal, used: Mapping[str, Path]) -> None:
        """Take what the run uses, by name, with a place below /sys that is there as long as it is."""
        self._journal = journal
        self._used = used
        self._reader = -1
        self._pid = 0
        self._received = b""

    def started(self) -> None:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        parent = os.getpid()
        try:
            self._pid = fork(lambda: _listen(writer, parent), child_ends=[writer], parent_ends=[reader])
        except OSError as error:
            self._note_end(f"could not be started ({error.strerror})")
            return
        os.set_blocking(reader, False)
        self._reader = reader

    def beat(self) -> str | None:
        """Write down what was heard; return a sentence where the run has lost what it works on."""
        gone = None
        for event in self._heard():
            device = Path(str(event["DEVPATH"])).name
            in_use = device in self._used
            self._journal.write(
                "device.changed",
                Level.WARNING if in_use else Level.INFO,
                device=device,
                in_use=in_use,
                **{key.lower(): event.get(key) for key in ("ACTION", "SUBSYSTEM", "DRIVER")},
                summary=f"{event['ACTION']} of {device}" + (", which this run uses" if in_use else ""),
            )
            # The soak itself takes a device from its driver to recycle it, and gives it back.
            if in_use and event["ACTION"] in _GOING and not self._used[device].exists():
                gone = device
        if gone is None:
            return None
        why = f"{gone}, which this run works on, has gone away"
        self._journal.write("limit.reached", Level.ERROR, limit="devices", summary=why)
        return why

    def ended(self) -> None:
        self.close()

    def close(self) -> None:
        """End the process that listens, and wait for it."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0
        if self._reader >= 0:
            os.close(self._reader)
            self._reader = -1

    def _heard(self) -> list[dict[str, Any]]:
        if self._reader < 0:
            return []
        try:
            data = os.read(self._reader, _CHUNK)
        except BlockingIOError:
            data = b""
        else:
            if not data:
                self._note_end("has died")
        self._received += data
        *lines, self._received = self._received.split(b"\n", _MOST_AT_ONCE)
        return [json.loads(line) for line in lines]

    def _note_end(self, how: str) -> None:
        """Say that nobody listens any more; the run goes on without."""
        self.close()
        self._journal.write(
            "uevents.failed",
            Level.WARNING,
            summary=f"the uevent listener {how}; hotplug events are no longer recorded",
        )


def _listen(writer: int, parent: int) -> None:
    """Be the process that listens: at the lowest priority, for the workers are what counts."""
    serve_parent(parent)
    os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)
    for event in uevents():
        if event.get("SUBSYSTEM") in _SUBSYSTEMS and "DEVPATH" in event and "ACTION" in event:
            os.write(writer, json.dumps(event).encode() + b"\n")
