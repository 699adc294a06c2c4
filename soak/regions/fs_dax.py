# SPDX-License-Identifier: GPL-2.0-only
"""Files on a DAX file system: their pages are the blocks of the device.

The region is a directory that the soak creates on that file system, with files of equal size. Workers
map them as one contiguous span of addresses.
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
# The maximum size of a trial's file, which each trial creates and partly writes.
TRIAL_FILE_SIZE: Final = 4 << 20
_DIRECTORY: Final = "dax-soak-{name}"
_DEFAULT_SIZE: Final = 64 << 20
_FILL: Final = b"\xa5" * (1 << 20)


@dataclass(frozen=True)
class FsDaxRegion:
    """`size // FILE_SIZE` files in a directory that the soak creates, and removes at the end."""

    name: str
    directory: Path
    size: int
    pages: PageSpan
    kind: RegionKind = RegionKind.FS_DAX
    # Major and minor number of the block device.
    disk: str = ""

    @classmethod
    def examine(cls, section: RegionSection) -> FsDaxRegion:
        """Check that the region can be created, without creating it.

        Raises:
            UsageError: the parent directory does not exist, is not on a DAX file system of a pmem
                namespace with struct pages, lacks space, or already has a directory of that name.
        """
        parent = Path(section.path)
        size = section.size or _DEFAULT_SIZE
        if size % FILE_SIZE:
            raise UsageError(
                f"The region {section.name!r} has size {size}, expected a multiple of the file size "
                f"{FILE_SIZE}."
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
                f"The region {section.name!r} has size {size}, but {parent} has only {room} bytes free: "
                f"free some space or reduce the size."
            )
        return cls(section.name, directory, size, pages, disk=device_number(section.path))

    def prepare(self, make_directory: Callable[[Path], Path]) -> FsDaxRegion:
        """Create the directory and its files; return the region with the directory's real path.

        Raises:
            UsageError: the directory or a file cannot be written.
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
        """Return the files in the order of their addresses."""
        return [self.directory / f"file-{index:02}" for index in range(self.size // FILE_SIZE)]

    def trial_path(self, place: int, generation: int) -> Path:
        """Return the file of one pair of trial workers; never one of `paths`.

        `place` continues the numbering of `paths`. An abandoned file is never touched again: the next
        `generation` gets a new one.
        """
        return self.directory / f"trial-{place:02}-{generation}"

    def canary_path(self, name: str) -> Path:
        """Return the file of a canary; never one of the other files."""
        return self.directory / f"canary-{name}"

    def map(self) -> Mapping:
        """Map all files contiguously."""
        # Reserve the whole span, then map each file over its part.
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
    """Write the whole file: a pin of an unwritten extent takes the zero page, not DAX memory."""
    with path.open("wb") as file:
        for _ in range(FILE_SIZE // len(_FILL)):
            file.write(_FILL)


def _check_absent(directory: Path) -> None:
    if os.path.lexists(directory):
        raise UsageError(
            f"{directory} exists, but the soak creates that directory for the region: 'dax-soak restore' "
            f"removes leftovers of a soak; move anything else away, or rename the region."
        )


class Sized(Protocol):
    """Kind and size of a region."""

    @property
    def kind(self) -> RegionKind: ...
    @property
    def size(self) -> int: ...


def file_count(region: Sized) -> int:
    """Return the number of files of a region: 0 for other kinds than fs-dax."""
    return region.size // FILE_SIZE if region.kind is RegionKind.FS_DAX else 0


def first_files(regions: Sequence[Sized]) -> list[int]:
    """Number the files of all regions consecutively; return the first number of each region."""
    return [0, *accumulate(file_count(region) for region in regions)][:-1]


def _check_dax(section: RegionSection) -> None:
    """Check with an unnamed file (O_TMPFILE) that new files in the directory use DAX."""
    try:
        probe = os.open(section.path, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EISDIR}:
            raise
        dax = False  # every file system with DAX supports O_TMPFILE
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
    """Return the physical pages of the pmem namespace below the file system."""
    namespace = pmem_namespace(device_number(section.path))
    if namespace is None or not namespace.size:
        raise UsageError(
            f"The region {section.name!r} is {section.path}, which does not lie on a pmem namespace in "
            f"fsdax mode: 'dax-soak check' lists the namespaces of this machine."
        )
    return PageSpan(namespace.resource // PAGE_SIZE, namespace.size // PAGE_SIZE, 1)
