# SPDX-License-Identifier: GPL-2.0-only
"""Users of a block device: mounts, swap, stacked devices and processes."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from soak.abi.mounts import mounts, swap_devices
from soak.abi.openers import Device, openers
from soak.machine.check_line import Objection
from soak.process.helper import HelperError, in_helper

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

_CLASS: Final = Path("/sys/class/block")
_DEVICES: Final = Path("/dev")
_SECONDS: Final = 20.0


def disk_users(names: Iterable[str]) -> list[Objection]:
    """Return the mounts, swap areas and stacked devices of disks and their partitions.

    `names` are kernel names such as nvme0n1. Reads sysfs and procfs; opens no device.
    """
    return [objection for name in names for objection in _users((_CLASS / name).resolve(), name)]


def opened(
    names: Iterable[str], others: Collection[Device], seconds: float = _SECONDS
) -> list[Objection]:
    """Return an objection for each user that has these disks, or the devices `others`, open.

    Finds what `disk_users` cannot: mounts in other namespaces, arrays, processes.
    """
    stacked = sorted({place.name for name in names for place in _stack((_CLASS / name).resolve())})
    asked = {Device("b", _number(_CLASS / name)) for name in stacked} | set(others)
    if not asked:
        return []
    # Opening a disk and looking into other processes can hang.
    try:
        claimed, users, hidden = in_helper(lambda: [*_look(stacked, asked)], seconds)
    except HelperError as error:
        return [Objection(f"its users cannot be read: {error}", "find what keeps its devices busy")]
    found = []
    if claimed:
        found.append(
            Objection(
                f"{', '.join(claimed)} is claimed by the kernel: a file system, swap or an array",
                "'lsblk' shows what is built on it: take that down",
            )
        )
    if users:
        found.append(Objection(f"{users} has a device of it open", "stop that process first"))
    if hidden:
        found.append(Objection(f"the descriptors of {hidden} cannot be read", "run this as root"))
    return found


def _look(names: Iterable[str], devices: Collection[Device]) -> Iterator[object]:
    yield [name for name in names if _is_claimed(_DEVICES / name.replace("!", "/"))]
    # Neither the calling process nor this helper has one open.
    yield from openers(devices, but=(os.getpid(), os.getppid())).texts()


def _is_claimed(path: Path) -> bool:
    """Try O_EXCL: a mount, swap, device mapper and md claim their device (bd_may_claim()).

    A device that cannot be opened, such as an empty card reader, has no data to lose.
    """
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def _users(device: Path, below: str) -> Iterator[Objection]:
    """Yield the uses of a device, its partitions and its holders."""
    number = _number(device)
    name = device.name
    through = "" if name == below else f" on {below}"
    for mount in mounts():
        if mount.number == number:
            yield Objection(
                f"{name}{through} is mounted on {mount.point}", f"'umount {mount.point}' first"
            )
            break
    if number in swap_devices():
        yield Objection(f"{name}{through} is swap", f"'swapoff /dev/{name}' first")
    for part in _partitions(device):
        yield from _users(part, below)
    for holder in _holders(device):
        yield Objection(
            f"{holder.name} is built on {name}", f"take {holder.name} down ('lsblk' shows it)"
        )
        yield from _users(holder, below)


def _stack(device: Path) -> Iterator[Path]:
    yield device
    for above in (*_partitions(device), *_holders(device)):
        yield from _stack(above)


def _partitions(device: Path) -> list[Path]:
    return [entry.parent for entry in sorted(device.glob("*/partition"))]


def _holders(device: Path) -> list[Path]:
    holders = device / "holders"
    return [entry.resolve() for entry in sorted(holders.iterdir())] if holders.exists() else []


def _number(device: Path) -> str:
    return (device / "dev").read_text().strip()
