# SPDX-License-Identifier: GPL-2.0-only
"""The namespaces of the lab's NVDIMM: one for each device-dax or fs-dax region.

The host computes their sizes; the guest makes them with ndctl, or finds those of an earlier boot.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from soak.abi.libc import LIBC, checked

if TYPE_CHECKING:
    from collections.abc import Sequence

DEVICE_DAX: Final = "device-dax"
FIRST_MOUNT: Final = Path("/mnt/dax")

_MIB: Final = 1 << 20
# QEMU keeps the labels at the end of the NVDIMM's file.
LABEL_SIZE: Final = 2 * _MIB
_DEFAULT_ALIGNMENT: Final = 2 * _MIB
_MODES: Final = {DEVICE_DAX: "devdax", "fs-dax": "fsdax"}
# 64 bytes of struct page for each page of 4 KiB, kept in the namespace itself (-M dev).
_PAGES_PER_STRUCT_PAGE: Final = 64
_INFO_BLOCK: Final = 2 * _MIB
# Room for the files of trials and probes, and a journal; mkfs.xfs needs 300 MiB.
_FILE_SYSTEM: Final = 300 * _MIB
# A section of memory (SECTION_SIZE_BITS, arch/x86/include/asm/sparsemem.h): a namespace of part of a
# section has its struct pages in several pieces.
_GRANULE: Final = 128 * _MIB
_TOOL_SECONDS: Final = 240
_DEVICE_SECONDS: Final = 30.0
_REGION: Final = "region0"
_MAKE_FILESYSTEM: Final = {
    "ext4": ("mkfs.ext4", "-q", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    "xfs": ("mkfs.xfs", "-q", "-f", "-m", "reflink=0"),
}


class NamespaceError(Exception):
    """The guest's kernel or tools cannot make a namespace; the message has its name and the reason."""


@dataclass(frozen=True)
class Namespace:
    """A namespace for the region of the same name; sizes in bytes."""

    region: str
    kind: str
    size: int
    alignment: int

    @classmethod
    def of(cls, region: str, kind: str, size: int, alignment: int) -> Namespace:
        """Compute the namespace in which `size` bytes can be mapped, or stored as files."""
        alignment = alignment or _DEFAULT_ALIGNMENT
        usable = size if kind == DEVICE_DAX else size + _FILE_SYSTEM
        own = usable // _PAGES_PER_STRUCT_PAGE + _INFO_BLOCK
        whole = _round_up(own, alignment) + usable
        return cls(region, kind, _round_up(whole, max(alignment, _GRANULE)), alignment)


def nvdimm_size(namespaces: Sequence[Namespace]) -> int:
    """Return the size of an NVDIMM that holds the namespaces, whatever their alignment."""
    room = sum(space.size + space.alignment for space in namespaces)
    return _round_up(room + 64 * _MIB, max(nvdimm_alignment(namespaces), 128 * _MIB)) + LABEL_SIZE


def nvdimm_alignment(namespaces: Sequence[Namespace]) -> int:
    """Return the alignment of the NVDIMM in the guest's memory."""
    return max((space.alignment for space in namespaces), default=_DEFAULT_ALIGNMENT)


def prepare(
    namespaces: Sequence[Namespace], filesystem: str, *, resumed: bool
) -> dict[str, dict[str, Any]]:
    """Make the namespaces, or find those of an earlier boot; return path and alignment by region.

    Raises:
        NamespaceError: the kernel has no NVDIMM, or a namespace cannot be made, found or mounted.
    """
    if not _appears(Path("/sys/bus/nd/devices") / _REGION):
        raise NamespaceError("the kernel shows no NVDIMM: it needs CONFIG_ACPI_NFIT and CONFIG_LIBNVDIMM")
    if not resumed:
        _tool("ndctl", "disable-region", _REGION)
        _tool("ndctl", "init-labels", "-f", "nmem0")
        _tool("ndctl", "enable-region", _REGION)
    found = {}
    for space in namespaces:
        made = _find(space) if resumed else _make(space)
        if space.kind == DEVICE_DAX:
            device = made["daxregion"]["devices"][0]
            found[space.region] = {"path": f"/dev/{device['chardev']}", "alignment": int(made["align"])}
        else:
            mount = _mount_point(space, namespaces)
            _mount(f"/dev/{made['blockdev']}", mount, filesystem, fresh=not resumed)
            for left in mount.glob("dax-soak-*"):
                # Their record of changes was in the memory of the previous boot.
                shutil.rmtree(left)
            found[space.region] = {"path": str(mount)}
    return found


def _make(space: Namespace) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(
        _tool(
            "ndctl",
            "create-namespace",
            "-r",
            _REGION,
            "-M",
            "dev",
            "-n",
            space.region,
            "-m",
            _MODES[space.kind],
            "-a",
            str(space.alignment),
            "-s",
            str(space.size),
        )
    )
    return made


def _find(space: Namespace) -> dict[str, Any]:
    listed = json.loads(_tool("ndctl", "list", "-N", "-X", "-r", _REGION))
    for made in listed if isinstance(listed, list) else [listed]:
        if made.get("name") == space.region:
            return dict(made)
    raise NamespaceError(f"the NVDIMM no longer has a namespace {space.region}")


def _mount_point(space: Namespace, namespaces: Sequence[Namespace]) -> Path:
    """Return the mount point: `FIRST_MOUNT` for the first file system, one beside it for others."""
    first = next(other for other in namespaces if other.kind != DEVICE_DAX)
    return FIRST_MOUNT if space is first else FIRST_MOUNT.with_name(f"dax-{space.region}")


def _mount(disk: str, mount: Path, filesystem: str, *, fresh: bool) -> None:
    if fresh:
        _tool(*_MAKE_FILESYSTEM[filesystem], disk)
    mount.mkdir(parents=True)
    result = LIBC.mount(disk.encode(), bytes(mount), filesystem.encode(), 0, b"dax=always")
    try:
        checked(result, f"mount {filesystem} with dax=always")
    except OSError as error:
        raise NamespaceError(
            f"{disk} cannot be mounted as {filesystem} with dax=always: {error}"
        ) from None


def _appears(path: Path) -> bool:
    """Wait until a driver has registered `path`; False on timeout."""
    deadline = time.monotonic() + _DEVICE_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _tool(*arguments: str) -> str:
    result = subprocess.run(arguments, check=False, capture_output=True, text=True, timeout=_TOOL_SECONDS)
    if result.returncode != 0:
        raise NamespaceError(f"{' '.join(arguments)} failed: {result.stderr.strip() or result.stdout}")
    return result.stdout


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
