# SPDX-License-Identifier: GPL-2.0-only
"""DAX memory of this machine: device-dax devices, pmem disks and the file systems on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from soak.abi.dax import DaxDevice, PmemNamespace, dax_devices, disk_name, pmem_disks
from soak.abi.mounts import Mount, mounts
from soak.machine.check_line import Finding, Objection, State, refused
from soak.regions.device_dax import mode_problem, use_problem

if TYPE_CHECKING:
    from collections.abc import Iterator

_NUMBERS: Final = Path("/sys/dev/block")
_FILE_SYSTEMS: Final = ("ext4", "xfs")
# ext4 shows plain `dax` for the mount option from before the modes (9cb20f94afcd).
_ALWAYS: Final = frozenset(("dax", "dax=always"))
_MEMMAPS: Final = {
    "pmem": "struct pages in pmem",
    "ram": "struct pages in RAM",
    "mem": "struct pages in RAM",
}


def device_findings() -> list[Finding]:
    """Judge every device-dax device of this machine."""
    return [judge_device(device) for device in dax_devices()]


def judge_device(device: DaxDevice) -> Finding:
    """Judge whether a device can be a region, with the checks of the region itself."""
    path = f"/dev/{device.name}"
    what = (
        f"{size_text(device.size)} in pages of {size_text(device.alignment)}, node {device.target_node}"
        + (f", {_MEMMAPS[device.memmap]}" if device.memmap in _MEMMAPS else "")
    )
    facts = {
        "path": path,
        "size": device.size,
        "alignment": device.alignment,
        "target_node": device.target_node,
        "driver": device.driver or None,
        "memmap": device.memmap or None,
    }
    problem = mode_problem(device) or use_problem(device)
    if problem:
        reason, _, remedy = problem.partition("; ")
        return Finding(path, State.NO, f"{what}: {reason}", remedy, facts)
    return Finding(path, State.OK, f"{what}: a region of kind device-dax", facts=facts)


def file_system_findings() -> list[Finding]:
    """Judge every file system on pmem, and every pmem disk without a mount.

    A file system with several mounts is one finding: its pages are the same.
    """
    disks = pmem_disks()
    findings = []
    for number, namespace in disks.items():
        mounted = [mount for mount in mounts() if mount.number == number]
        # Prefer the mount of its root, then a writable one.
        mounted.sort(key=lambda mount: (mount.root != "/", "ro" in mount.options, mount.point))
        findings.append(judge_disk(disk_name(number), namespace, mounted[0] if mounted else None))
    return findings


def judge_disk(disk: str, namespace: PmemNamespace, mount: Mount | None) -> Finding:
    """Judge whether the file system on a pmem disk can hold a region."""
    what = f"{mount.kind} on {disk}" if mount else "pmem disk"
    memmap = _MEMMAPS.get(namespace.memmap)
    what += f" ({namespace.mode}" + (f", {memmap})" if memmap else ")")
    facts = {
        "path": mount.point if mount else None,
        "disk": disk,
        "namespace": namespace.name,
        "mode": namespace.mode,
        "memmap": namespace.memmap,
        "file_system": mount.kind if mount else None,
        "size": namespace.size,
    }
    subject = mount.point if mount else f"/dev/{disk}"
    objections = list(_objections(disk, namespace, mount))
    if objections:
        return refused(subject, what, objections, facts)
    return Finding(subject, State.OK, f"{what}, DAX for every file: a region of kind fs-dax", facts=facts)


def _objections(disk: str, namespace: PmemNamespace, mount: Mount | None) -> Iterator[Objection]:
    if namespace.mode != "fsdax":
        yield Objection(
            f"a namespace in {namespace.mode} mode has no struct pages, so nothing can be pinned",
            f"'ndctl create-namespace -f -e {namespace.name} -m fsdax', which erases its data",
        )
        return
    if mount is None:
        yield Objection(
            "it is not mounted",
            f"if it holds no data, 'mkfs.ext4 -b 4096 /dev/{disk}' and 'mount -o dax=always "
            f"/dev/{disk} DIRECTORY'",
        )
        return
    if mount.kind not in _FILE_SYSTEMS:
        yield Objection(f"{mount.kind} is not one of {' and '.join(_FILE_SYSTEMS)}", "use another disk")
    elif not mount.options & _ALWAYS:
        yield Objection(
            "it is mounted without DAX",
            f"'umount {mount.point}' and 'mount -o dax=always /dev/{disk} {mount.point}'; blocks "
            f"must be as large as pages, and Linux before 6.0 needs xfs made with -m reflink=0",
        )
    if "ro" in mount.options:
        yield Objection("it is read-only", f"'mount -o remount,rw {mount.point}'")


def size_text(size: int) -> str:
    """Format a size in the largest unit that divides it, such as `510 MiB`."""
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 1 << shift and not size % (1 << shift):
            return f"{size >> shift} {unit}"
    return f"{size} bytes"
