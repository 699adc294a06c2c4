# SPDX-License-Identifier: GPL-2.0-only
"""Files on a file system with DAX: their pages are the blocks of the device.

The region is a directory of the soak's own on that file system, with files of equal size. Workers see
them as one span of addresses, one file behind the other.
"""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from soak.abi.dax import pmem_namespace
from soak.abi.mmap import MAP_FIXED, MAP_SHARED, PROT_READ, PROT_WRITE, Mapping
from soak.abi.statx import device_number, is_dax
from soak.errors import UsageError
from soak.model.vocabulary import RegionKind
from soak.regions.pages import PAGE_SIZE, PageSpan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from soak.config.sections import RegionSection

FILE_SIZE: Final = 8 << 20
# A file of a trial is never longer; it is made anew and written in part for each one.
TRIAL_FILE_SIZE: Final = 4 << 20
_DIRECTORY: Final = "dax-soak-{name}"
_DEFAULT_SIZE: Final = 64 << 20
_FILL: Final = b"\xa5" * (1 << 20)


@dataclass(frozen=True)
class FsDaxRegion:
    """`size // FILE_SIZE` files in a directory that the soak makes, and removes at the end."""

    name: str
    directory: Path
    size: int
    pages: PageSpan
    kind: RegionKind = RegionKind.FS_DAX
    # Major and minor number of the block device.
    disk: str = ""

    @classmethod
    def examine(cls, section: RegionSection) -> FsDaxRegion:
        """Check that the region can be had; nothing is left behind, and there are no files yet.

        Raises:
            UsageError: the directory is not there, is not on a DAX file system, the device's
                physical place cannot be told, or the files would lie in a directory of somebody else.
        """
        parent = Path(section.path)
        size = section.size or _DEFAULT_SIZE
        if size % FILE_SIZE:
            raise UsageError(
                f"The region {section.name!r} should have {size} bytes: give a multiple of the "
                f"file size {FILE_SIZE}."
            )
        try:
            pages = _device_pages(section)
            _check_dax(section)
            directory = parent / _DIRECTORY.format(name=section.name)
            _check_absent(directory)
            room = shutil.disk_usage(parent).free
        except OSError as error:
            raise UsageError(
                f"The region {section.name!r} cannot use {parent}: {error.strerror}."
            ) from None
        if room < size:
            raise UsageError(
                f"The region {section.name!r} should have {size} bytes, and {parent} has room for "
                f"{room}: give it a smaller size."
            )
        return cls(section.name, directory, size, pages, disk=device_number(section.path))

    def prepare(self, make_directory: Callable[[Path], Path]) -> FsDaxRegion:
        """Have the directory made and fill the files; return the region with the directory's real path.

        Raises:
            UsageError: the directory cannot be made or filled.
        """
        region = replace(self, directory=make_directory(self.directory))
        try:
            for path in region.paths():
                _fill(path)
        except OSError as error:
            raise UsageError(
                f"The region {self.name!r} cannot use {self.directory.parent}: {error.strerror}."
            ) from None
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


def _fill(path: Path) -> None:
    """Write a file whole: an unwritten extent would pin the zero page, not DAX memory."""
    with path.open("wb") as file:
        for _ in range(FILE_SIZE // len(_FILL)):
            file.write(_FILL)


def _check_absent(directory: Path) -> None:
    if os.path.lexists(directory):
        raise UsageError(
            f"{directory} exists, and the region would have its files there: 'dax-soak restore' removes "
            f"what a soak left behind; move anything else away, or give the region another name."
        )


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


def _check_dax(section: RegionSection) -> None:
    """Ask a file without a name whether files of this directory are DAX; it is gone afterwards."""
    try:
        probe = os.open(section.path, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EISDIR}:
            raise
        dax = False  # no file system with DAX lacks files without a name
    else:
        try:
            dax = is_dax(probe)
        finally:
            os.close(probe)
    if not dax:
        raise UsageError(
            f"The region {section.name!r} is {section.path}, whose files are not DAX: mount a "
            f"file system on pmem with '-o dax=always'."
        )


def _device_pages(section: RegionSection) -> PageSpan:
    """Find the physical pages of the file system's device: the namespace below its disk."""
    namespace = pmem_namespace(device_number(section.path))
    if namespace is None or not namespace.size:
        raise UsageError(
            f"The region {section.name!r} is {section.path}, which does not lie on a pmem "
            f"namespace with pages of its own (fsdax mode): 'dax-soak check' shows what there is."
        )
    return PageSpan(namespace.resource // PAGE_SIZE, namespace.size // PAGE_SIZE, 1)
