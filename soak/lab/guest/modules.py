# SPDX-License-Identifier: GPL-2.0-only
"""Which modules the guest of a lab loads, where its kernel has them as modules."""

from __future__ import annotations

from typing import Final

# The checksum drivers are requested by the file systems under alias names, which no dependency list
# shows.
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
# Hardware that only scripts are given: a network card, a disk, and device DAX that becomes RAM.
SCRIPT_MODULES: Final = ("virtio_net", "virtio_blk", "kmem")
# What a script may load besides: what is built on network cards, and more disks.
LOADABLE_MODULES: Final = ("8021q", "bonding", "bridge", "nvme")
GUEST_MODULES: Final = (*(*BASE_MODULES, *FILE_SYSTEM_MODULES, *SCRIPT_MODULES, *LOADABLE_MODULES),)
