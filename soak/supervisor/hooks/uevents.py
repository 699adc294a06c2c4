# SPDX-License-Identifier: GPL-2.0-only
"""Logs devices that come and go during a run, and ends a run that loses its own device.

A child process listens to uevents and sends lines of JSON over a pipe: pyroute2 is slow to import in a
guest, and ties a socket to one thread.
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
# Lines handled in one beat; the rest wait for later ones.
_MOST_AT_ONCE: Final = 64
_GOING: Final = frozenset(("remove", "unbind", "offline"))
_PCI: Final = Path("/sys/bus/pci/devices")
_DAX: Final = Path("/sys/bus/dax/devices")
_VFIO: Final = "vfio-pci"


def devices_in_use(regions: Sequence[Region], functions: Iterable[str]) -> dict[str, Path]:
    """Return the devices that a run needs: their uevent names, and a path that exists while they work."""
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
    """Listens from the start of the workers to their end. `used` is of `devices_in_use`."""

    def __init__(self, journal: Journal, used: Mapping[str, Path]) -> None:
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
        """Log the new uevents; return a reason to end if a device of the run is gone."""
        gone = None
        for event in self._new_events():
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
            # The soak itself unbinds and rebinds a device to recycle it.
            if in_use and event["ACTION"] in _GOING and not self._used[device].exists():
                gone = device
        if gone is None:
            return None
        why = f"{gone}, which this run uses, is gone"
        self._journal.write("limit.reached", Level.ERROR, limit="devices", summary=why)
        return why

    def ended(self) -> None:
        self.close()

    def close(self) -> None:
        """Kill the listening process, and wait for it."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0
        if self._reader >= 0:
            os.close(self._reader)
            self._reader = -1

    def _new_events(self) -> list[dict[str, Any]]:
        if self._reader < 0:
            return []
        try:
            data = os.read(self._reader, _CHUNK)
        except BlockingIOError:
            data = b""
        else:
            if not data:
                self._note_end("died")
        self._received += data
        *lines, self._received = self._received.split(b"\n", _MOST_AT_ONCE)
        return [json.loads(line) for line in lines]

    def _note_end(self, how: str) -> None:
        """Log that the listener has ended; the run goes on without it."""
        self.close()
        self._journal.write(
            "uevents.failed",
            Level.WARNING,
            summary=f"the uevent listener {how}; hotplug events are no longer recorded",
        )


def _listen(writer: int, parent: int) -> None:
    """Listen, in the child process, at the lowest priority to leave the processors to the workers."""
    serve_parent(parent)
    os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)
    for event in uevents():
        if event.get("SUBSYSTEM") in _SUBSYSTEMS and "DEVPATH" in event and "ACTION" in event:
            os.write(writer, json.dumps(event).encode() + b"\n")
