# SPDX-License-Identifier: GPL-2.0-only
"""Run in a guest: a page of device DAX is pinned until the kernel can count no more, and soaked then.

It reports what it saw, scene by scene; tests/boots/test_saturation.py asserts.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final

from soak.abi.mmap import MAP_FIXED, MAP_SHARED, PROT_READ, PROT_WRITE, Mapping
from soak.abi.vfio import VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, Container
from tests.boots.harness.guest_run import COVERING, Newest, Run, configure, left, listen_on_loopback
from tests.boots.harness.in_guest import bound, functions, play, run_tool

CONFIG: Final = Path("/run/soak.toml")
DEVICE: Final = Path("/dev/dax0.0")
PCI: Final = Path("/sys/bus/pci")
DAX: Final = Path("/sys/bus/dax/drivers/device_dax")
PAGE: Final = 4096
IOVA: Final = 0x1_4000_0000
# Mappings of one page in one span: to make them takes long.
ALIASES: Final = 1 << 12
# A pin is 1024 references of 2^31 (GUP_PIN_COUNTING_BIAS, include/linux/mm.h).
FULL: Final = (1 << 31) // 1024
DEADLINE: Final = 240.0


class Pinner:
    """Pins the first page of the device again and again: type1 on a leaking kernel never unpins it."""

    def __init__(self) -> None:
        (PCI / "devices" / functions()[0] / "driver_override").write_text("vfio-pci")
        (PCI / "drivers_probe").write_text(functions()[0])
        self._container = Container(functions()[0])
        self._span = Mapping.reserve(ALIASES * PAGE)
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        for start in range(0, ALIASES * PAGE, PAGE):
            flags = MAP_SHARED | MAP_FIXED
            self._span.replace(start, PAGE, PROT_READ | PROT_WRITE, flags, device)
        os.close(device)
        self.pins = 0

    def pin(self, times: int) -> int:
        """Return 0, or the errno with which the kernel refuses."""
        flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE
        while times:
            aliases = min(times, ALIASES)
            result = self._container.map(self._span.address, IOVA, aliases * PAGE, flags)
            if result:
                return result
            self._container.unmap(IOVA, aliases * PAGE)
            self.pins += aliases
            times -= aliases
        return 0

    def close(self) -> None:
        self._container.close()
        self._span.close()
        (PCI / "drivers/vfio-pci/unbind").write_text(functions()[0])
        (PCI / "devices" / functions()[0] / "driver_override").write_text("\n")


def make_new() -> None:
    (DAX / "unbind").write_text(DEVICE.name)
    (DAX / "bind").write_text(DEVICE.name)
    deadline = time.monotonic() + DEADLINE
    while not DEVICE.exists():
        if time.monotonic() > deadline:
            sys.exit("the device does not come back")
        time.sleep(0.05)


def soaked(*, recyclable: bool) -> dict[str, Any]:
    """Soak on what is there, until it ends by itself or has seen all that a pass needs."""
    # What is tried is the device's alone: nothing else has to be covered.
    configure(
        CONFIG,
        "10m",
        size="2M",
        recyclable=recyclable,
        rate=COVERING,
        trials=0,
        holders=0,
        invalidators=0,
    )
    before = Newest().directory
    run = Run(CONFIG)
    run.until("a run directory", lambda: run.directory != before)
    run.until("what becomes of it", lambda: bool(run.events("limit.reached")) or not run.uncovered())
    # A run that ends by itself has done so, or is about to.
    code = run.process.wait(DEADLINE) if run.events("limit.reached") else run.end(signal.SIGTERM)
    (ended,) = run.events("run.ended")
    return {
        "code": code,
        "why": ended["why"],
        "limits": [event["summary"] for event in run.events("limit.reached")],
        "recycled": run.events("region.recycled"),
        "started": len(run.events("workers.started")),
        "verdict": run.verdict(),
        "left": left(),
        "bound": bound(),
    }


def used_by_an_earlier_soak() -> dict[str, Any]:
    """Take a third of the head-room away: what is left is enough for a soak."""
    pinner = Pinner()
    pinner.pin(FULL // 3)
    pinner.close()
    return soaked(recyclable=True)


def pinned_until_refused() -> dict[str, Any]:
    make_new()
    pinner = Pinner()
    refused = pinner.pin(FULL - ALIASES)
    # One by one, to count those that the kernel grants.
    while not refused:
        refused = pinner.pin(1)
    pinner.close()
    return {"pins": pinner.pins, "of": FULL, "errno": errno.errorcode[refused]}


def main() -> None:
    listen_on_loopback()
    if not (PCI / "drivers/vfio-pci").exists():
        run_tool("modprobe", "vfio-pci")
    play(
        {
            "used": used_by_an_earlier_soak,
            "full": pinned_until_refused,
            "alone": lambda: soaked(recyclable=False),
            "recycled": lambda: soaked(recyclable=True),
        }
    )


main()
