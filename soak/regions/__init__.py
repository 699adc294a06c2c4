"""Memory under test: found, checked and mapped. The supervisor opens regions, workers map them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from soak.regions.anonymous import AnonymousRegion
from soak.regions.device_dax import DeviceDaxRegion
from soak.regions.fs_dax import FsDaxRegion
from soak.vocabulary import RegionKind

if TYPE_CHECKING:
    from soak.config import RegionSection

Region = DeviceDaxRegion | FsDaxRegion | AnonymousRegion


def open_region(section: RegionSection) -> Region:
    """Find and check the region that a configuration names.

    Raises:
        UsageError: it is not there, or is not what the configuration says.
    """
    match section.kind:
        case RegionKind.DEVICE_DAX:
            return DeviceDaxRegion.find(section)
        case RegionKind.FS_DAX:
            return FsDaxRegion.find(section)
        case RegionKind.ANONYMOUS:
            return AnonymousRegion.find(section)


__all__ = ["AnonymousRegion", "DeviceDaxRegion", "FsDaxRegion", "Region", "open_region"]
