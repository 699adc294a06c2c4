# SPDX-License-Identifier: GPL-2.0-only
"""Find, check and map memory under test. The supervisor opens regions, workers map them."""

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
    """Find and check a configured region, without creating anything.

    Raises:
        UsageError: it does not exist, is in use, or does not match the configuration.
    """
    match section.kind:
        case RegionKind.DEVICE_DAX:
            return DeviceDaxRegion.find(section)
        case RegionKind.FS_DAX:
            return FsDaxRegion.examine(section)
        case RegionKind.ANONYMOUS:
            return AnonymousRegion.find(section)


def check_apart(regions: Sequence[Region]) -> None:
    """Refuse regions that share pages: each would count the other's references.

    Directories of one file system share its pages.

    Raises:
        UsageError: two regions share pages.
    """
    for one, other in combinations(regions, 2):
        if one.pages is not None and other.pages is not None and one.pages.meets(other.pages):
            raise UsageError(
                f"The regions {one.name!r} and {other.name!r} lie on the same memory, so references of "
                f"one would count as leaks of the other: give each its own device or file system."
            )


def open_regions(
    sections: Sequence[RegionSection], make_directory: Callable[[Path], Path]
) -> list[Region]:
    """Check all regions, and create the files of fs-dax regions.

    `make_directory` creates and records a directory, and returns its real path. A region in use is
    retried for a few seconds, because workers of a killed supervisor may still be exiting.

    Raises:
        UsageError: a region cannot be used.
    """
    regions = [_retried(examine_region, section) for section in sections]
    check_apart(regions)
    return [
        region.prepare(make_directory) if isinstance(region, FsDaxRegion) else region
        for region in regions
    ]


def _retried(act: Callable[[_A], _R], argument: _A) -> _R:
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
