# SPDX-License-Identifier: GPL-2.0-only
"""Device-dax devices and NVDIMM namespaces as sysfs shows them.

Documentation/ABI/testing/sysfs-bus-dax and sysfs-bus-nvdimm; drivers/dax/bus.c, drivers/nvdimm/.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

SYSTEM_RAM_DRIVER: Final = "kmem"
DEVICE_DRIVER: Final = "device_dax"
_DEVICES: Final = Path("/sys/bus/dax/devices")
_BLOCK: Final = Path("/sys/dev/block")
_ND_BUS: Final = "nd"


@dataclass(frozen=True)
class DaxDevice:
    """A device-dax device. Sizes and addresses in bytes; `number` is MAJOR:MINOR of the device file."""

    name: str
    driver: str  # "" if unbound
    size: int
    alignment: int
    resource: int
    target_node: int
    number: str
    memmap: str  # where the struct pages are: ram, pmem, or "" if the kernel does not report it

    @classmethod
    def read(cls, attributes: Path) -> DaxDevice:
        """Read the attributes of a device from its sysfs directory.

        Raises:
            OSError, ValueError: the device is gone, or is not a device-dax.
        """

        def attribute(name: str) -> str:
            return (attributes / name).read_text().strip()

        driver = attributes / "driver"
        mode = attributes.resolve().parent / "mode"
        return cls(
            name=attributes.resolve().name,
            driver=driver.resolve().name if driver.exists() else "",
            size=int(attribute("size")),
            alignment=int(attribute("align")),
            resource=int(attribute("resource"), 0),
            target_node=int(attribute("target_node")),
            number=attribute("dev"),
            memmap=mode.read_text().strip() if mode.exists() else "",
        )


def dax_devices(directory: Path = _DEVICES) -> list[DaxDevice]:
    """Return every device-dax of nonzero size, sorted by name.

    Each dax region also has a seed device of size 0, which serves to create others.
    """
    if not directory.exists():
        return []
    found = [DaxDevice.read(entry) for entry in sorted(directory.iterdir())]
    return [device for device in found if device.size]


@dataclass(frozen=True)
class PmemNamespace:
    """The namespace below a pmem disk.

    `mode` is fsdax (with struct pages), raw or sector. `memmap` is where the struct pages are: pmem,
    ram or none. `resource` and `size` are the physical address and length in bytes, 0 without pages.
    """

    name: str
    mode: str
    memmap: str
    resource: int
    size: int


def pmem_namespace(number: str, directory: Path = _BLOCK) -> PmemNamespace | None:
    """Return the namespace below the disk MAJOR:MINOR, or None if that is not a pmem disk.

    Raises:
        OSError, ValueError: the disk disappeared meanwhile.
    """
    device = directory / number / "device"
    if not (device / "subsystem").exists() or (device / "subsystem").resolve().name != _ND_BUS:
        return None
    name = device.resolve().name
    if name.startswith("pfn"):
        return PmemNamespace(
            (device / "namespace").read_text().strip(),
            "fsdax",
            (device / "mode").read_text().strip(),
            int((device / "resource").read_text(), 0),
            int((device / "size").read_text(), 0),
        )
    if name.startswith("btt"):
        return PmemNamespace((device / "namespace").read_text().strip(), "sector", "none", 0, 0)
    if (device / "mode").read_text().strip() == "memory":
        # A legacy namespace (firmware e820 type 12, or memmap=): its struct pages are in RAM.
        resource = int((device / "resource").read_text(), 0)
        return PmemNamespace(name, "fsdax", "ram", resource, int((device / "size").read_text(), 0))
    return PmemNamespace(name, "raw", "none", 0, 0)


def pmem_disks(directory: Path = _BLOCK) -> dict[str, PmemNamespace]:
    """Return all pmem disks by MAJOR:MINOR."""
    found = {}
    for entry in sorted(directory.iterdir()):
        namespace = pmem_namespace(entry.name, directory)
        if namespace is not None:
            found[entry.name] = namespace
    return found


def disk_name(number: str, directory: Path = _BLOCK) -> str:
    """Return the kernel name of the disk or partition MAJOR:MINOR, such as pmem0."""
    return (directory / number).resolve().name
