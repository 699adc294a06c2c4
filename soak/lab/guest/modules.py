# SPDX-License-Identifier: GPL-2.0-only
"""The modules that a lab's guest loads, if its kernel has them as modules."""

from __future__ import annotations

from typing import Final

# File systems request the checksum drivers by aliases, which modules.dep does not show.
BASE_MODULES: Final = (
    "virtio_pci",
    "virtio_console",
    "nfit",
    "nd_pmem",
    "dax_pmem",
    "device_dax",
    "crc32c_generic",
    "crc32c_intel",
    "libcrc32c",
    "vfio",
    "vfio_iommu_type1",
    "vfio_pci",
    "brd",
    "dm_mod",
    "dm_delay",
    "null_blk",
)
FILE_SYSTEM_MODULES: Final = ("ext4", "xfs")
# For the hardware of scripts: a network card, a disk, and device DAX that becomes RAM.
SCRIPT_MODULES: Final = ("virtio_net", "virtio_blk", "kmem")
# A script may also load these: stacked network devices, and more disks.
LOADABLE_MODULES: Final = ("8021q", "bonding", "bridge", "nvme")
GUEST_MODULES: Final = (*(*BASE_MODULES, *FILE_SYSTEM_MODULES, *SCRIPT_MODULES, *LOADABLE_MODULES),)
