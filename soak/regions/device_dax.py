"""Device DAX: a character device whose pages are the memory itself (drivers/dax/)."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from soak.abi.mmap import MAP_SHARED, PROT_READ, PROT_WRITE, Mapping
from soak.errors import UsageError
from soak.regions.pages import PAGE_SIZE, PageSpan
from soak.vocabulary import RegionKind

if TYPE_CHECKING:
    from soak.config import RegionSection

_SYSTEM_RAM_DRIVER = "kmem"


@dataclass(frozen=True)
class DeviceDaxRegion:
    """A device such as /dev/dax0.0, or its first `size` bytes."""

    name: str
    path: Path
    size: int
    alignment: int
    pages: PageSpan
    kind: RegionKind = RegionKind.DEVICE_DAX

    @classmethod
    def find(cls, section: RegionSection) -> DeviceDaxRegion:
        """Find the device and check that it may be used.

        Raises:
            UsageError: it is no device-dax, is used as system RAM, or is too small.
        """
        path = Path(section.path)
        attributes = _attributes(section)
        driver = attributes / "driver"
        if driver.exists() and driver.resolve().name == _SYSTEM_RAM_DRIVER:
            raise UsageError(
                f"The region {section.name!r} is {path}, which this machine uses as system RAM: "
                f"give it back with 'daxctl reconfigure-device --mode=devdax {path.name}' first."
            )
        whole = int((attributes / "size").read_text())
        alignment = int((attributes / "align").read_text())
        if section.alignment not in {0, alignment}:
            raise UsageError(
                f"The region {section.name!r} should be aligned to {section.alignment} bytes, and "
                f"{path} is to {alignment}: make the namespace with 'ndctl create-namespace "
                f"--mode=devdax --align={section.alignment}', or leave the alignment out."
            )
        size = section.size or whole
        if size > whole or size % alignment:
            raise UsageError(
                f"The region {section.name!r} should use {size} bytes of {path}, which has {whole}: "
                f"give a multiple of its alignment {alignment}, or no size for all of it."
            )
        start = int((attributes / "resource").read_text(), 0)
        pages = PageSpan(start // PAGE_SIZE, size // PAGE_SIZE, alignment // PAGE_SIZE)
        return cls(section.name, path, size, alignment, pages)

    def map(self) -> Mapping:
        """Map the region shared; device DAX refuses everything else (dev_dax check_vma())."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return Mapping(self.size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor)
        finally:
            os.close(descriptor)


def _attributes(section: RegionSection) -> Path:
    path = Path(section.path)
    try:
        status = path.stat()
    except OSError as error:
        raise UsageError(
            f"The region {section.name!r} cannot be used: {path}: {error.strerror}."
        ) from None
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    attributes = Path("/sys/dev/char") / number
    if not stat.S_ISCHR(status.st_mode) or not (attributes / "align").exists():
        raise UsageError(
            f"The region {section.name!r} is {path}, which is no device-dax: "
            f"'daxctl list' shows those of this machine."
        )
    return attributes
