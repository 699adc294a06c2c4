# SPDX-License-Identifier: GPL-2.0-only
"""vfio containers with the type1 IOMMU driver (include/uapi/linux/vfio.h)."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from ctypes import get_errno
from pathlib import Path
from typing import Final, Self

from soak.abi.libc import RAW_IOCTL, ioctl


def _request(number: int) -> int:
    """_IO(VFIO_TYPE, VFIO_BASE + number)."""
    return ord(";") << 8 | (100 + number)


VFIO_CHECK_EXTENSION: Final = _request(1)
VFIO_SET_IOMMU: Final = _request(2)
VFIO_GROUP_GET_STATUS: Final = _request(3)
VFIO_GROUP_SET_CONTAINER: Final = _request(4)
VFIO_GROUP_GET_DEVICE_FD: Final = _request(6)
VFIO_IOMMU_MAP_DMA: Final = _request(13)
VFIO_IOMMU_UNMAP_DMA: Final = _request(14)

VFIO_TYPE1v2_IOMMU: Final = 3
VFIO_GROUP_FLAGS_VIABLE: Final = 1
VFIO_DMA_MAP_FLAG_READ: Final = 1
VFIO_DMA_MAP_FLAG_WRITE: Final = 2

_CONTAINER: Final = "/dev/vfio/vfio"


class GroupStatus(ctypes.Structure):
    _fields_ = (("argsz", ctypes.c_uint32), ("flags", ctypes.c_uint32))


class DmaMap(ctypes.Structure):
    """struct vfio_iommu_type1_dma_map."""

    _fields_ = (
        ("argsz", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("vaddr", ctypes.c_uint64),
        ("iova", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
    )


class DmaUnmap(ctypes.Structure):
    """struct vfio_iommu_type1_dma_unmap; the kernel stores the unmapped size in `size`."""

    _fields_ = (
        ("argsz", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("iova", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
    )


# The hot loop fills these two structures: pack_into() is faster than setting each field. The formats
# match the structures above, which have no padding.
_MAP_SIZE, _UNMAP_SIZE = ctypes.sizeof(DmaMap), ctypes.sizeof(DmaUnmap)
_FILL_MAP, _FILL_UNMAP = struct.Struct("=2I3Q").pack_into, struct.Struct("=2I2Q").pack_into


class Container:
    """A type1 container with one group and the group's device.

    A group opens once, so each function has one container; closing it removes every mapping.
    `map` and `unmap` are the calls under test: they return 0 or an errno and never raise.
    """

    def __init__(self, function: str) -> None:
        """Open a container for a PCI function that is bound to vfio-pci.

        Raises:
            OSError: the function is bound to another driver, its group is not viable or already
                open, or the kernel lacks the type1 driver.
        """
        self._open: list[int] = []
        try:
            self._container = self._opened(_CONTAINER)
            group = self._opened(str(group_device(function)))
            status = GroupStatus(ctypes.sizeof(GroupStatus))
            ioctl(group, VFIO_GROUP_GET_STATUS, ctypes.byref(status), "VFIO_GROUP_GET_STATUS")
            if not status.flags & VFIO_GROUP_FLAGS_VIABLE:
                raise OSError(
                    f"the IOMMU group of {function} is not viable: another device in it has a driver"
                )
            container = ctypes.c_int(self._container)
            ioctl(group, VFIO_GROUP_SET_CONTAINER, ctypes.byref(container), "VFIO_GROUP_SET_CONTAINER")
            ioctl(self._container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU, "VFIO_SET_IOMMU")
            device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, function.encode(), "VFIO_GROUP_GET_DEVICE_FD")
            self._open.append(device)
        except BaseException:
            self.close()
            raise
        self._map, self._unmap = DmaMap(), DmaUnmap()
        self._map_at, self._unmap_at = ctypes.byref(self._map), ctypes.byref(self._unmap)

    def fileno(self) -> int:
        return self._container

    def map(self, address: int, iova: int, size: int, flags: int) -> int:
        """Pin `size` bytes at `address` and map them at `iova`; return 0 or an errno."""
        _FILL_MAP(self._map, 0, _MAP_SIZE, flags, address, iova, size)
        if RAW_IOCTL(self._container, VFIO_IOMMU_MAP_DMA, self._map_at) < 0:
            return get_errno()
        return 0

    def unmap(self, iova: int, size: int) -> int:
        """Unmap and unpin; return 0 or an errno. An empty range succeeds, with `unmapped` 0."""
        _FILL_UNMAP(self._unmap, 0, _UNMAP_SIZE, 0, iova, size)
        if RAW_IOCTL(self._container, VFIO_IOMMU_UNMAP_DMA, self._unmap_at) < 0:
            return get_errno()
        return 0

    @property
    def unmapped(self) -> int:
        """Bytes that the last `unmap` removed."""
        size: int = self._unmap.size
        return size

    def close(self) -> None:
        """Close device, group and container, which removes every mapping."""
        while self._open:
            os.close(self._open.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _opened(self, path: str) -> int:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._open.append(descriptor)
        return descriptor


def group_device(function: str) -> Path:
    """Return the device file of the IOMMU group of a PCI function such as 0000:00:05.0.

    Raises:
        OSError: the function does not exist, or has no group because no IOMMU is on.
    """
    link = Path(f"/sys/bus/pci/devices/{function}/iommu_group")
    return Path("/dev/vfio") / link.readlink().name


def group_in_use(function: str) -> bool:
    """Return whether the group of a function that is bound to vfio-pci is open.

    A group opens once, and never while a device in it is open through its cdev
    (vfio_group_fops_open()).

    Raises:
        OSError: the group cannot be opened for another reason.
    """
    try:
        os.close(os.open(group_device(function), os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return True
        raise
    return False


def supports_type1() -> bool:
    """Return whether the kernel has the type1 IOMMU driver; opening the container may load vfio.

    Raises:
        OSError: the kernel lacks vfio.
    """
    container = os.open(_CONTAINER, os.O_RDWR | os.O_CLOEXEC)
    try:
        return bool(ioctl(container, VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU, "VFIO_CHECK_EXTENSION"))
    finally:
        os.close(container)
