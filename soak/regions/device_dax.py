# SPDX-License-Identifier: GPL-2.0-only
"""Device DAX: a character device that maps its memory directly (drivers/dax/)."""

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
        """Find the device and check that it is usable.

        Raises:
            UsageError: it is not a device-dax, is online as system RAM, is too small, or does not have
                the configured alignment.
            InUseError: another process has it open or mapped.
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
                f"The region {section.name!r} has alignment {section.alignment}, but {path} has "
                f"{alignment}: create the namespace with 'ndctl create-namespace --mode=devdax "
                f"--align={section.alignment}', or omit the alignment."
            )
        size = section.size or device.size
        if size > device.size or size % alignment:
            raise UsageError(
                f"The region {section.name!r} has size {size}, but {path} has {device.size} bytes of "
                f"alignment {alignment}: choose a multiple of the alignment that fits, or omit the size."
            )
        pages = PageSpan(device.resource // PAGE_SIZE, size // PAGE_SIZE, alignment // PAGE_SIZE)
        return cls(section.name, path, size, alignment, pages, section.recyclable)

    def map(self) -> Mapping:
        """Map the region shared; device DAX rejects private mappings (check_vma(), drivers/dax/)."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return Mapping(self.size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor)
        finally:
            os.close(descriptor)


def mode_problem(device: DaxDevice) -> str:
    """Return why a device cannot be mapped and what to do, or an empty string if it can."""
    if device.driver == SYSTEM_RAM_DRIVER:
        return (
            f"it is online as system RAM; run 'daxctl reconfigure-device --mode=devdax {device.name}' "
            f"first"
        )
    if device.driver != DEVICE_DRIVER:
        return (
            f"it has no driver; 'daxctl reconfigure-device --mode=devdax {device.name}' binds device_dax"
        )
    return ""


def use_problem(device: DaxDevice) -> str:
    """Return which processes use a device and what to do, or an empty string if it is free.

    Device DAX has no exclusive open, so this examines every process.
    """

    def find_users() -> tuple[str, str]:
        return openers([Device("c", device.number)], but=(os.getpid(), os.getppid())).texts()

    try:
        users, hidden = in_helper(find_users, _SECONDS)
    except HelperError as error:
        return f"its users cannot be determined ({error})"
    if users:
        return f"it is in use by {users}; stop that first"
    if hidden:
        return f"cannot determine whether {hidden} uses it; run this as root"
    return ""


def _device(section: RegionSection) -> DaxDevice:
    """Find a device by device file, or by name if it is system RAM and has no device file."""
    path = Path(section.path)
    devices = dax_devices()
    try:
        named = Device.of(path.stat())
    except FileNotFoundError:
        for device in devices:
            if path == Path("/dev") / device.name:
                return device
        named = None
    except OSError as error:
        raise UsageError(
            f"The region {section.name!r} cannot be used: {path}: {error.strerror}."
        ) from None
    for device in devices:
        if named == Device("c", device.number):
            return device
    found = "is not a device-dax" if path.exists() else "does not exist"
    raise UsageError(
        f"The region {section.name!r} is {path}, which {found}: 'dax-soak check' lists the devices of "
        f"this machine."
    )
