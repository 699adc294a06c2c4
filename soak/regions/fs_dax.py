"""Files on a file system with DAX: their pages are the blocks of the device.

The region is a directory of the soak's own on that file system, with files of equal size. Workers see
them as one span of addresses, one file behind the other.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from soak.abi.mmap import MAP_FIXED, MAP_SHARED, PROT_READ, PROT_WRITE, Mapping
from soak.abi.statx import device_number, is_dax
from soak.errors import UsageError
from soak.regions.pages import PAGE_SIZE, PageSpan
from soak.vocabulary import RegionKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from soak.config import RegionSection

FILE_SIZE: Final = 8 << 20
# A file of a trial is never longer; it is made anew and written in part for each one.
TRIAL_FILE_SIZE: Final = 4 << 20
_DIRECTORY: Final = "dax-soak-files"
_DEFAULT_SIZE: Final = 64 << 20
_FILL: Final = b"\xa5" * (1 << 20)


@dataclass(frozen=True)
class FsDaxRegion:
    """`size // FILE_SIZE` files in a directory that the soak made."""

    name: str
    directory: Path
    size: int
    pages: PageSpan
    kind: RegionKind = RegionKind.FS_DAX

    @classmethod
    def find(cls, section: RegionSection) -> FsDaxRegion:
        """Make the files, and check that they are DAX.

        Raises:
            UsageError: the directory is not there, is not on a DAX file system or has no room, or
                the device's physical place cannot be told.
        """
        parent = Path(section.path)
        size = section.size or _DEFAULT_SIZE
        if size % FILE_SIZE:
            raise UsageError(
                f"The region {section.name!r} should have {size} bytes: give a multiple of the "
                f"file size {FILE_SIZE}."
            )
        directory = parent / _DIRECTORY
        try:
            directory.mkdir(exist_ok=True)
            for pattern in ("trial-*", "canary-*"):
                for left in directory.glob(pattern):
                    left.unlink()
            region = cls(section.name, directory, size, _device_pages(section))
            region._fill()
        except OSError as error:
            raise UsageError(
                f"The region {section.name!r} cannot use {parent}: {error.strerror}."
            ) from None
        with region.paths()[0].open("rb") as probe:
            if not is_dax(probe.fileno()):
                raise UsageError(
                    f"The region {section.name!r} is {parent}, whose files are not DAX: mount a "
                    f"file system on pmem with '-o dax=always'."
                )
        return region

    def paths(self) -> list[Path]:
        """Return the files, in the order in which they are mapped."""
        return [self.directory / f"file-{index:02}" for index in range(self.size // FILE_SIZE)]

    def trial_path(self, place: int, generation: int) -> Path:
        """Return a file that is none of `paths` and belongs to one pair of workers.

        `place` counts on from the last of `paths`. A file that was given up is never touched again:
        the next `generation` has another.
        """
        return self.directory / f"trial-{place:02}-{generation}"

    def canary_path(self, name: str) -> Path:
        """Return a file for a fault that the soak makes itself: none of the others."""
        return self.directory / f"canary-{name}"

    def map(self) -> Mapping:
        """Map all files, one behind the other."""
        # One reservation keeps the addresses together; each file then takes its part of it.
        mapping = Mapping.reserve(self.size)
        for index, path in enumerate(self.paths()):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                mapping.replace(
                    index * FILE_SIZE,
                    FILE_SIZE,
                    PROT_READ | PROT_WRITE,
                    MAP_SHARED | MAP_FIXED,
                    descriptor,
                )
            finally:
                os.close(descriptor)
        return mapping

    def _fill(self) -> None:
        """Write every file whole: an unwritten extent would pin the zero page, not DAX memory."""
        for path in self.paths():
            with path.open("wb") as file:
                for _ in range(FILE_SIZE // len(_FILL)):
                    file.write(_FILL)


class Sized(Protocol):
    """Anything that has the kind and the size of a region."""

    @property
    def kind(self) -> RegionKind: ...
    @property
    def size(self) -> int: ...


def file_count(region: Sized) -> int:
    """Return how many files a region consists of."""
    return region.size // FILE_SIZE if region.kind is RegionKind.FS_DAX else 0


def first_files(regions: Sequence[Sized]) -> list[int]:
    """Number the files of all regions through, and return the number of each region's first."""
    return [0, *accumulate(file_count(region) for region in regions)][:-1]


def _device_pages(section: RegionSection) -> PageSpan:
    """Find the physical pages of the file system's device: the namespace below its disk."""
    device = Path("/sys/dev/block") / device_number(section.path) / "device"
    try:
        start = int((device / "resource").read_text(), 0)
        size = int((device / "size").read_text(), 0)
    except OSError:
        raise UsageError(
            f"The region {section.name!r} is {section.path}, which does not lie on a pmem "
            f"namespace with pages of its own (fsdax mode)."
        ) from None
    return PageSpan(start // PAGE_SIZE, size // PAGE_SIZE, 1)
