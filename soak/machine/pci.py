# SPDX-License-Identifier: GPL-2.0-only
"""PCI functions: which may be given to vfio, and why others may not.

Documentation/driver-api/vfio.rst defines a group; drivers/vfio and drivers/iommu/iommu.c define when it
is usable.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from soak.abi.netlink import uses_of_links
from soak.abi.openers import Device
from soak.abi.vfio import group_in_use
from soak.machine.blocks import disk_users, opened
from soak.machine.check_line import Finding, Objection, State, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEVICES: Final = Path("/sys/bus/pci/devices")
_GROUPS: Final = Path("/dev/vfio")
VFIO_DRIVER: Final = "vfio-pci"
# These drivers do not claim DMA ownership of the group (driver_managed_dma, 512881eacfa7).
_HARMLESS_DRIVERS: Final = frozenset((VFIO_DRIVER, "pci-stub"))
_BRIDGE_DRIVERS: Final = frozenset(("", "pcieport", *_HARMLESS_DRIVERS))
_ADDRESS: Final = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_HIDDEN_NVME: Final = re.compile(r"^(nvme\d+)c\d+(n\d+)$")
TURN_ON: Final = "enable VT-d or AMD-Vi in the firmware, and on Intel boot with intel_iommu=on"
# include/linux/pci_ids.h; the longest matching prefix applies. No endpoint has a class of _NEVER.
_BRIDGE, _NETWORK = "06", "02"
_NEVER: Final = {_BRIDGE: "a bridge", "0806": "the IOMMU itself"}
_CLASSES: Final = {
    **_NEVER,
    "01": "storage",
    "0108": "NVMe storage",
    _NETWORK: "network",
    "03": "display",
    "04": "multimedia",
    "05": "memory",
    "07": "communication",
    "08": "system device",
    "09": "input",
    "0c": "serial bus",
    "0c03": "USB",
    "0d": "wireless",
    "10": "encryption",
    "11": "signal processing",
    "12": "accelerator",
    "0600": "the host bridge",
}


@dataclass(frozen=True)
class PciFunction:
    """A function as sysfs shows it. `group` is None if no IOMMU translates it."""

    address: str
    vendor: str
    device: str
    class_code: str  # six hexadecimal digits: class, subclass, interface
    driver: str
    group: str | None
    members: tuple[str, ...]  # the other functions of the group
    links: tuple[str, ...]
    disks: tuple[str, ...]
    devices: frozenset[Device]  # every device file below it
    virtual_functions: int
    is_console: bool

    @classmethod
    def read(cls, address: str, directory: Path = DEVICES) -> PciFunction:
        """Read a function.

        Raises:
            OSError: no function has that address, or it was removed.
        """
        place = directory / address

        def attribute(name: str) -> str:
            return (place / name).read_text().strip().removeprefix("0x")

        def optional(name: str) -> int:
            return int(attribute(name)) if (place / name).exists() else 0

        group = place / "iommu_group"
        members = group / "devices"
        class_code = attribute("class").zfill(6)
        # Functions below a bridge are read on their own.
        below = [] if class_code.startswith(_BRIDGE) else list(_below(place.resolve()))
        return cls(
            address=address,
            vendor=attribute("vendor"),
            device=attribute("device"),
            class_code=class_code,
            driver=(place / "driver").resolve().name if (place / "driver").exists() else "",
            group=group.resolve().name if group.exists() else None,
            members=tuple(
                sorted({entry.name for entry in members.iterdir()} - {address})
                if members.exists()
                else ()
            ),
            links=tuple(sorted(path.name for path in below if path.parent.name == "net")),
            disks=tuple(sorted({_disk(path) for path in below if _is_disk(path)})),
            devices=frozenset(_device(path) for path in below if (path / "dev").exists()),
            virtual_functions=optional("sriov_numvfs"),
            is_console=bool(optional("boot_vga")),
        )

    @property
    def is_bridge(self) -> bool:
        return self.class_code.startswith(_BRIDGE)

    def what(self) -> str:
        """Describe it, such as `network 8086:1515 (ixgbevf)`."""
        named = max((code for code in _CLASSES if self.class_code.startswith(code)), default="")
        kind = _CLASSES.get(named, f"class {self.class_code}")
        return f"{kind} {self.vendor}:{self.device}" + (f" ({self.driver})" if self.driver else "")

    def facts(self) -> dict[str, object]:
        return {
            "address": self.address,
            "vendor": self.vendor,
            "device": self.device,
            "class": self.class_code,
            "driver": self.driver or None,
            "group": self.group,
            "group_members": list(self.members),
            "links": list(self.links),
            "disks": list(self.disks),
        }


def pci_functions(directory: Path = DEVICES) -> list[PciFunction]:
    """Return every function of the machine, by address."""
    if not directory.exists():
        return []
    return [PciFunction.read(entry.name, directory) for entry in sorted(directory.iterdir())]


def objections(address: str) -> list[Objection]:
    """Return every reason why a function must not be given to vfio; empty if it may be.

    A function that is bound to vfio-pci already and unused may be given.
    """
    if not _ADDRESS.fullmatch(address):
        return [Objection(f"{address!r} is not a PCI address", "write one such as 0000:00:05.0")]
    try:
        function = PciFunction.read(address)
    except FileNotFoundError:
        return [Objection("this machine has no such function", "'dax-soak check' lists them all")]
    found = [objection for rule in _RULES for objection in rule(function)]
    # Scanning every process is expensive: skip it if there is a reason already.
    return found or opened(function.disks, function.devices)


def finding(function: PciFunction) -> Finding:
    """Judge a function of this machine."""
    found = objections(function.address)
    if found:
        return refused(function.address, function.what(), found, function.facts())
    use = {VFIO_DRIVER: "bound to vfio-pci and free", "": "can be given to vfio"}.get(
        function.driver, f"can be given to vfio; {function.driver} loses it for the run"
    )
    return Finding(
        function.address,
        State.OK,
        f"{function.what()}, IOMMU group {function.group}: {use}",
        facts=function.facts(),
    )


def _kind(function: PciFunction) -> Iterator[Objection]:
    for code, what in _NEVER.items():
        if function.class_code.startswith(code):
            yield Objection(f"it is {what}, not an endpoint", "name another function")
    if function.is_console:
        yield Objection("it is the boot display of this machine", "use another function")
    if function.virtual_functions:
        yield Objection(
            f"it has {function.virtual_functions} virtual functions, which would be lost",
            "use one of those, or write 0 to its sriov_numvfs",
        )


def _group(function: PciFunction) -> Iterator[Objection]:
    if function.group is None:
        yield Objection("it has no IOMMU group: no IOMMU is enabled", TURN_ON)
        return
    for address in function.members:
        member = PciFunction.read(address)
        allowed = _BRIDGE_DRIVERS if member.is_bridge else _HARMLESS_DRIVERS
        if member.driver not in allowed:
            driven = f"{member.driver} drives" if member.driver else "has no driver"
            yield Objection(
                f"it shares IOMMU group {function.group} with {address}, which {driven}",
                f"bind {address} to vfio-pci or pci-stub too, or put the card into another slot",
            )


def _links(function: PciFunction) -> Iterator[Objection]:
    """Follow each link up through bonds, bridges and VLANs, which may carry the route."""
    if not function.links:
        idle = function.driver in {"", *_HARMLESS_DRIVERS}
        if function.class_code.startswith(_NETWORK) and not idle:
            yield Objection(
                f"{function.driver} drives it, and its network interface is not in this network "
                f"namespace",
                f"stop the container that uses it, or unbind it from {function.driver}",
            )
        return
    above = {name: link for link in function.links for name in _with_uppers(link)}
    try:
        uses = uses_of_links(above)
    except OSError as error:
        yield Objection(f"its routes cannot be read: {error}", "run 'dax-soak check' as root")
        return
    for name, found in uses.items():
        through = "" if name == above[name] else f" (above {above[name]})"
        if found:
            yield Objection(
                f"{name}{through} {', '.join(found)}",
                f"if it is not needed, 'ip address flush dev {name}' and 'ip link set {name} down'",
            )


def _disks(function: PciFunction) -> Iterator[Objection]:
    yield from disk_users(function.disks)


def _vfio(function: PciFunction) -> Iterator[Objection]:
    """The group has a device file once any function of it is bound to vfio-pci."""
    if function.group is None or not (_GROUPS / function.group).exists():
        return
    try:
        if group_in_use(function.address):
            yield Objection(
                f"its IOMMU group {function.group} is in use, such as by a virtual machine or another "
                f"soak",
                f"'fuser -v /dev/vfio/{function.group}' shows the process: stop it first",
            )
    except OSError as error:
        yield Objection(f"its IOMMU group cannot be opened: {error.strerror}", "run as root")


_RULES: Final[tuple[Callable[[PciFunction], Iterator[Objection]], ...]] = (
    _kind,
    _group,
    _links,
    _disks,
    _vfio,
)


def _below(place: Path) -> Iterator[Path]:
    """Yield the sysfs directories below a function, without following links."""
    for entry in sorted(place.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            yield entry
            yield from _below(entry)


def _is_disk(place: Path) -> bool:
    subsystem = place / "subsystem"
    return (
        subsystem.exists() and subsystem.resolve().name == "block" and not (place / "partition").exists()
    )


def _disk(place: Path) -> str:
    """Return the name of a disk.

    With NVMe multipath a function has only a hidden path disk, nvme0c1n1, of the disk in use, nvme0n1
    (drivers/nvme/host/multipath.c).
    """
    return _HIDDEN_NVME.sub(r"\1\2", place.name)


def _device(place: Path) -> Device:
    letter = "b" if (place / "subsystem").resolve().name == "block" else "c"
    return Device(letter, (place / "dev").read_text().strip())


def _with_uppers(link: str) -> Iterator[str]:
    yield link
    for upper in sorted(Path("/sys/class/net", link).glob("upper_*")):
        yield from _with_uppers(upper.name.removeprefix("upper_"))
