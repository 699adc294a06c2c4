# SPDX-License-Identifier: GPL-2.0-only
"""The steps of the canaries' helpers: real faults, made with real system calls.

Each function is a generator for a `StepHelper`; one step runs up to a `yield`.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Final

from soak.abi.fallocate import truncate
from soak.abi.mmap import MADV_DONTNEED, MAP_SHARED, PROT_READ, PROT_WRITE, Mapping
from soak.abi.splice import HeldPages, PagePipe
from soak.abi.transfer import write_from
from soak.model.cell import Cell
from soak.model.vocabulary import Interface, Operation, RegionKind, errno_name
from soak.regions import DeviceDaxRegion, FsDaxRegion
from soak.regions.pages import PAGE_SIZE
from soak.workload.choices import Choice
from soak.workload.loop import outcome_columns, work
from soak.workload.pins.methods import METHODS, PIPE
from soak.workload.pins.short import HoldBook

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from soak.ledger.writer import BlockWriter
    from soak.model.kernels import Release
    from soak.regions import Region
    from soak.workload.pins.long_term import LongTermInterface

# The number of a canary's file in the ledger, which no worker's file has.
_PLACE: Final = 1 << 20
_NO_ACCESS: Final = 0
_FILL: Final = (ctypes.c_ubyte * PAGE_SIZE)(*([0xA5] * PAGE_SIZE))


def refused_map(
    block: BlockWriter, release: Release, region: Region, kind: LongTermInterface, function: str
) -> Iterator[str]:
    """Make a long-term pin fail with an unexpected errno. Yields the errno."""
    with closing(kind.open(function)) as pin, region.map() as mapping:
        cell = Cell(Operation.MAP, region.kind, kind.interface)
        yield _call(block, release, cell, lambda: kind.provoke(pin, mapping.address))


def refused_hold(block: BlockWriter, release: Release) -> Iterator[str]:
    """Request a short pin of an unmapped range. Yields the errno: EFAULT."""
    with Mapping.reserve(PAGE_SIZE) as mapping, PagePipe() as pipe:
        cell = Cell(Operation.HOLD, RegionKind.FS_DAX, Interface.VMSPLICE)
        yield _call(block, release, cell, lambda: pipe.take(mapping.address, PAGE_SIZE))


def lying_holder(block: BlockWriter, region: FsDaxRegion, name: str) -> Iterator[str]:
    """Pin a page of a file, record its release in the ledger, and release it only later.

    Sweeps account for the page until its real release. Steps: ready, held, noted, released, gone.
    """
    position = block.index("pages_mapped", region.name)
    path = region.canary_path(name)
    mapping = _mapped_file(region, name)
    book, pipe = HoldBook(block, certain=True), PagePipe()
    yield "ready"
    book.begin(Choice(0, 0, Operation.HOLD, 0, _PLACE, 0, PAGE_SIZE, 0, METHODS.index(PIPE)))
    number = pipe.take(mapping.address, PAGE_SIZE)
    if number:
        raise OSError(number, os.strerror(number), "vmsplice of a canary's page")
    book.taken()
    # Since Linux 6.15 a mapping counts as a reference, which a sweep would report.
    mapping.advise(MADV_DONTNEED)
    block.add("pages_mapped", 1, *position)
    yield "held"
    book.releasing()
    book.released()
    yield "noted"
    pipe.close()
    block.add("pages_unmapped", 1, *position)
    yield "released"
    mapping.close()
    path.unlink()
    yield "gone"


def truncater(block: BlockWriter, release: Release, region: FsDaxRegion, name: str) -> Iterator[str]:
    """Truncate the holder's file as an invalidator does. Steps: ready, and the truncate's result."""
    descriptor = os.open(region.canary_path(name), os.O_RDWR | os.O_CLOEXEC)
    yield "ready"
    cell = Cell(Operation.TRUNCATE_ZERO, RegionKind.FS_DAX, Interface.NONE)
    yield _call(block, release, cell, lambda: truncate(descriptor, 0))


def extra_pins(regions: Sequence[DeviceDaxRegion | FsDaxRegion], name: str) -> Iterator[str]:
    """Pin one page of each region outside all accounts. Steps: ready, held, released, gone.

    Pipes hold the pages, because some kernels never release a pin over vfio type1.
    """
    with ExitStack() as files:
        mappings = []
        for region in regions:
            if isinstance(region, FsDaxRegion):
                # Runs after the mapping is closed, because the stack unwinds in reverse.
                files.callback(region.canary_path(name).unlink)
                mappings.append(files.enter_context(_mapped_file(region, name)))
            else:
                mappings.append(files.enter_context(region.map()))
        yield "ready"
        with ExitStack() as pipes:
            for mapping in mappings:
                pipes.enter_context(HeldPages(mapping.address, PAGE_SIZE))
                mapping.advise(MADV_DONTNEED)
            yield "held"
        yield "released"
    yield "gone"


def _mapped_file(region: FsDaxRegion, name: str) -> Mapping:
    """Create a file of one written page, and map it."""
    descriptor = os.open(region.canary_path(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        number = write_from(descriptor, ctypes.addressof(_FILL), PAGE_SIZE, 0)
        if number:
            raise OSError(number, os.strerror(number), "writing a canary's file")
        return Mapping(PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor)
    finally:
        os.close(descriptor)


def _call(block: BlockWriter, release: Release, cell: Cell, call: Callable[[], int]) -> str:
    """Run and record one operation exactly as a worker does; return its errno, or "done"."""
    labels = block.names("counts")
    number = block.get("begun")
    choice = Choice(number, labels.index(cell.label), cell.operation, 0, _PLACE, 0, PAGE_SIZE, _NO_ACCESS)
    columns = outcome_columns([Cell.parse(label) for label in labels], release)
    results = []

    def run(_: Choice) -> int:
        results.append(call())
        return results[-1]

    # A canary never pauses, so its own block serves as the pause word.
    work(block, block.view("acknowledged"), iter((choice,)), {cell.operation: run}, columns)
    return errno_name(results[-1]) if results[-1] else "done"
