# SPDX-License-Identifier: GPL-2.0-only
"""Memory under test: found, checked and mapped. The supervisor opens regions, workers map them."""

from __future__ import annotations

import time
from itertools import combinations
from typing import TYPE_CHECKING, Final, TypeVar

from soak.errors import InUseError, UsageError
from soak.model.vocabulary import RegionKind
from soak.regions.anonymous import AnonymousRegion
from soak.regions.device_dax import DeviceDaxRegion
from soak.regions.fs_dax import FsDaxRegion

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from soak.config.sections import RegionSection

_A = TypeVar("_A")
_R = TypeVar("_R")
_ENDING_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.2

Region = DeviceDaxRegion | FsDaxRegion | AnonymousRegion


def examine_region(section: RegionSection) -> Region:
    """Find and check the region that a configuration names; nothing is made for it.

    Raises:
        UsageError: it is not there, must not be used, or is not what the configuration says.
    """
    match section.kind:
        case RegionKind.DEVICE_DAX:
            return DeviceDaxRegion.find(section)
        case RegionKind.FS_DAX:
            return FsDaxRegion.examine(section)
        case RegionKind.ANONYMOUS:
            return AnonymousRegion.find(section)


def check_apart(regions: Sequence[Region]) -> None:
    """Refuse regions that share pages: each would count what the other holds.

    Files of one file system share its pages, whatever directory they lie in.

    Raises:
        UsageError: names the two.
    """
    for one, other in combinations(regions, 2):
        if one.pages is not None and other.pages is not None and one.pages.meets(other.pages):
            raise UsageError(
                f"The regions {one.name!r} and {other.name!r} lie on the same memory, so what one holds "
                f"would look like a leak of the other: give each a device or a file system of its own."
            )


def open_regions(
    sections: Sequence[RegionSection], make_directory: Callable[[Path], Path]
) -> list[Region]:
    """Check all regions, and make the files of those that have some.

    `make_directory` makes the directories of the files, remembers them, and returns their real paths.
    What workers of a supervisor that died still use is waited for a moment: they are ending, too.

    Raises:
        UsageError: one cannot be used.
    """
    regions = [_patiently(examine_region, section) for section in sections]
    check_apart(regions)
    return [
        region.prepare(make_directory) if isinstance(region, FsDaxRegion) else region
        for region in regions
    ]


def _patiently(act: Callable[[_A], _R], argument: _A) -> _R:
    deadline = time.monotonic() + _ENDING_SECONDS
    while True:
        try:
            return act(argument)
        except InUseError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_POLL_SECONDS)


__all__ = [
    "AnonymousRegion",
    "DeviceDaxRegion",
    "FsDaxRegion",
    "Region",
    "check_apart",
    "examine_region",
    "open_regions",
]
