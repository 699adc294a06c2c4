"""vfio containers with the type1 IOMMU driver (include/uapi/linux/vfio.h)."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final, Self

from soak.abi.libc import LIBC, ioctl


def _request(number: int) -> int:
    """_IO(VFIO_TYPE, VFIO_BASE + number)."""
    return ord(";") << 8 | (100 + number)


SET_IOMMU: Final = _request(2)
GROUP_GET_STATUS: Final = _request(3)
GROUP_SET_CONTAINER: Final = _request(4)
GROUP_GET_DEVICE_FD: Final = _request(6)
IOMMU_MAP_DMA: Final = _request(13)
IOMMU_UNMAP_DMA: Final = _request(14)

TYPE1V2_IOMMU: Final = 3
GROUP_FLAGS_VIABLE: Final = 1
DMA_MAP_FLAG_READ: Final = 1
DMA_MAP_FLAG_WRITE: Final = 2

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
    """struct vfio_iommu_type1_dma_unmap; the kernel stores the size that it unmapped."""

    _fields_ = (
        ("argsz", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("iova", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
    )


class Container:
    """A type1 container that holds one group, and with it the group's device.

    A group opens once, so there is one container to a function; closing it gives back every mapping.
    `map` and `unmap` return 0 or an errno and raise nothing: they are the calls under test.
    """

    def __init__(self, function: str) -> None:
        """Open the container of a PCI function that is bound to vfio-pci.

        Raises:
            OSError: the function is bound to another driver, its group is not viable or is open
                elsewhere, or the kernel has no type1 driver.
        """
        self._open: list[int] = []
        try:
            self._container = self._opened(_CONTAINER)
            group = self._opened(str(group_device(function)))
            status = GroupStatus(ctypes.sizeof(GroupStatus))
            ioctl(group, GROUP_GET_STATUS, ctypes.byref(status), "VFIO_GROUP_GET_STATUS")
            if not status.flags & GROUP_FLAGS_VIABLE:
                raise OSError(
                    f"the IOMMU group of {function} is not viable: another device of it has a driver"
                )
            container = ctypes.c_int(self._container)
            ioctl(group, GROUP_SET_CONTAINER, ctypes.byref(container), "VFIO_GROUP_SET_CONTAINER")
            ioctl(self._container, SET_IOMMU, TYPE1V2_IOMMU, "VFIO_SET_IOMMU")
            device = ioctl(
                group, GROUP_GET_DEVICE_FD, function.encode(), "VFIO_GROUP_GET_DEVICE_FD"
            )
            self._open.append(device)
        except BaseException:
            self.close()
            raise
        self._map = DmaMap(ctypes.sizeof(DmaMap))
        self._unmap = DmaUnmap(ctypes.sizeof(DmaUnmap))
        self._map_address = ctypes.addressof(self._map)
        self._unmap_address = ctypes.addressof(self._unmap)

    def fileno(self) -> int:
        return self._container

    def map(self, address: int, iova: int, size: int, flags: int) -> int:
        """Pin `size` bytes at `address` and map them at `iova`; return 0 or an errno."""
        argument = self._map
        argument.flags = flags
        argument.vaddr = address
        argument.iova = iova
        argument.size = size
        if LIBC.ioctl(self._container, IOMMU_MAP_DMA, self._map_address) < 0:
            return ctypes.get_errno()
        return 0

    def unmap(self, iova: int, size: int) -> int:
        """Unmap and unpin; return 0 or an errno. Unmapping nothing is done, with `unmapped` 0."""
        argument = self._unmap
        argument.iova = iova
        argument.size = size
        if LIBC.ioctl(self._container, IOMMU_UNMAP_DMA, self._unmap_address) < 0:
            return ctypes.get_errno()
        return 0

    @property
    def unmapped(self) -> int:
        """Bytes that the last `unmap` took away."""
        return int(self._unmap.size)

    def close(self) -> None:
        """Give back the device, the group and every mapping."""
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
        OSError: there is no such function, or it has no group because no IOMMU is on.
    """
    link = Path(f"/sys/bus/pci/devices/{function}/iommu_group")
    return Path("/dev/vfio") / link.readlink().name
