# SPDX-License-Identifier: GPL-2.0-only
"""Device DAX: a character device whose pages are the memory itself (drivers/dax/)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from soak.abi.dax import DEVICE_DRIVER, SYSTEM_RAM_DRIVER, DaxDevice, dax_devices
from soak.abi.mmap import MAP_SHARED, PROT_READ, PROT_WRITE, Mapping
from soak.abi.openers import Device, openers
from soak.errors import InUseError, UsageError
from soak.model.vocabulary import RegionKind
from soak.process.helper import HelperError, in_helper
from soak.regions.pages import PAGE_SIZE, PageSpan

if TYPE_CHECKING:
    from soak.config.sections import RegionSection

_SECONDS: Final = 20.0


@dataclass(frozen=True)
class DeviceDaxRegion:
    """A device such as /dev/dax0.0, or its first `size` bytes."""

    name: str
    path: Path
    size: int
    alignment: int
    pages: PageSpan
    recyclable: bool = False
    kind: RegionKind = RegionKind.DEVICE_DAX

    @classmethod
    def find(cls, section: RegionSection) -> DeviceDaxRegion:
        """Find the device and check that it may be used.

        Raises:
            UsageError: it is no device-dax, is used as system RAM or by another process, or is too
                small.
        """
        device = _device(section)
        path = Path(section.path)
        if problem := mode_problem(device):
            raise UsageError(f"The region {section.name!r} is {path}: {problem}.")
        if problem := use_problem(device):
            raise InUseError(f"The region {section.name!r} is {path}: {problem}.")
        alignment = device.alignment
        if section.alignment not in {0, alignment}:
            raise UsageError(
                f"The region {section.name!r} should be aligned to {section.alignment} bytes, and "
                f"{path} is to {alignment}: make the namespace with 'ndctl create-namespace "
                f"--mode=devdax --align={section.alignment}', or leave the alignment out."
            )
        size = section.size or device.size
        if size > device.size or size % alignment:
            raise UsageError(
                f"The region {section.name!r} should use {size} bytes of {path}, which has "
                f"{device.size}: give a multiple of its alignment {alignment}, or no size for all of "
                f"it."
            )
        pages = PageSpan(device.resource // PAGE_SIZE, size // PAGE_SIZE, alignment // PAGE_SIZE)
        return cls(section.name, path, size, alignment, pages, section.recyclable)

    def map(self) -> Mapping:
        """Map the region shared; device DAX refuses everything else (dev_dax check_vma())."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return Mapping(self.size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor)
        finally:
            os.close(descriptor)


def mode_problem(device: DaxDevice) -> str:
    """Say why a device has no device file to map and what to do, or nothing where it has one."""
    if device.driver == SYSTEM_RAM_DRIVER:
        return (
            f"this machine uses it as system RAM; give it back with "
            f"'daxctl reconfigure-device --mode=devdax {device.name}' first"
        )
    if device.driver != DEVICE_DRIVER:
        return (
            f"no driver has it; 'daxctl reconfigure-device --mode=devdax {device.name}' gives it "
            f"to device_dax"
        )
    return ""


def use_problem(device: DaxDevice) -> str:
    """Say who else uses a device and what to do, or nothing where nobody does.

    The kernel lets any number of processes open one, so they are asked one by one.
    """

    def ask() -> tuple[str, str]:
        return openers([Device("c", device.number)], but=(os.getpid(), os.getppid())).texts()

    try:
        users, hidden = in_helper(ask, _SECONDS)
    except HelperError as error:
        return f"its users cannot be read ({error})"
    if users:
        return f"it is in use by {users}; end that first"
    if hidden:
        return f"whether {hidden} uses it cannot be read; run this as root"
    return ""


def _device(section: RegionSection) -> DaxDevice:
    """Find a device by its device file; one that is system RAM has none, and is known by its name."""
    path = Path(section.path)
    devices = dax_devices()
    try:
        asked = Device.of(path.stat())
    except FileNotFoundError:
        for device in devices:
            if path == Path("/dev") / device.name:
                return device
        asked = None
    except OSError as error:
        raise UsageError(
            f"The region {section.name!r} cannot be used: {path}: {error.strerror}."
        ) from None
    for device in devices:
        if asked == Device("c", device.number):
            return device
    missing = "" if path.exists() else " not there, or"
    raise UsageError(
        f"The region {section.name!r} is {path}, which is{missing} no device-dax: 'dax-soak check' "
        f"shows those of this machine."
    )
