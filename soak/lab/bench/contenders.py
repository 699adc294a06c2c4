# SPDX-License-Identifier: GPL-2.0-only
"""The contenders of a benchmark, all in one process of the guest.

They issue the same ioctls on the same container and memory, and count those with the expected result.
Only the loop differs: a loop in C, a minimal loop in Python, and the worker's loop with all its stores
to the ledger.
"""

from __future__ import annotations

import ctypes
from itertools import count, islice
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from soak.abi.libc import RAW_IOCTL
from soak.abi.vfio import (
    VFIO_DMA_MAP_FLAG_READ,
    VFIO_DMA_MAP_FLAG_WRITE,
    VFIO_IOMMU_MAP_DMA,
    VFIO_IOMMU_UNMAP_DMA,
    DmaMap,
    DmaUnmap,
)
from soak.model.vocabulary import Operation, RegionKind
from soak.workload.choices import Choice
from soak.workload.expectations import expected
from soak.workload.loop import outcome_columns, work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from soak.abi.vfio import Container
    from soak.lab.bench.series import Timed
    from soak.ledger.writer import BlockWriter
    from soak.model.kernels import Release
    from soak.workload.operators.mapper import Mapper
    from soak.workload.worker_plan import WorkerPlan

# Path of the compiled loop in the guest.
LIBRARY: Final = "/usr/lib/dax-soak-bench/loop.so"
LENGTH: Final = 2 << 20

_C, _BARE = "C loop", "bare Python loop"
# The report compares the other contenders with these.
REFERENCES: Final = (_C, _BARE)
_SLOT: Final = 0
_ACCESS: Final = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE


class Subject:
    """The operations of all contenders: map and unmap 2 MiB of a region, or a refused map."""

    def __init__(self, plan: WorkerPlan, kind: RegionKind, release: Release) -> None:
        """Find the region of this kind and the expectations for it.

        Raises:
            ValueError: the worker has no region of this kind.
        """
        self.kind = kind
        self.plan = plan
        self.region = [region.kind for region in plan.regions].index(kind)
        self.size = plan.regions[self.region].size
        self.columns = outcome_columns(plan.cells, release)
        cells = {(cell.operation, cell.region): at for at, cell in enumerate(plan.cells)}
        self.map_cell = cells[Operation.MAP, kind]
        row = expected(plan.cells[self.map_cell], release)
        # 0 where the map is granted.
        self.refusal = (row.refusal or 0) if row is not None else 0
        self.unmap_cell = None if self.refusal else cells[Operation.UNMAP, kind]

    @property
    def operations(self) -> int:
        """Number of ioctls in a cycle."""
        return 1 if self.refusal else 2

    def choices(self, offset: int, cycles: int) -> list[Choice]:
        """Return the choices of a worker for this number of cycles."""
        place = (self.region, _SLOT, offset, LENGTH, _ACCESS)
        if self.unmap_cell is None:
            return [Choice(number, self.map_cell, Operation.MAP, *place) for number in range(cycles)]
        steps = ((self.map_cell, Operation.MAP), (self.unmap_cell, Operation.UNMAP))
        return [
            Choice(2 * number + second, cell, operation, *place)
            for number in range(cycles)
            for second, (cell, operation) in enumerate(steps)
        ]


class Contenders:
    """Prepares each contender for a round and returns the function to time."""

    def __init__(
        self,
        subject: Subject,
        mapper: Mapper,
        container: Container,
        *,
        block: BlockWriter,
        pause: memoryview[int],
        library: ctypes.CDLL,
    ) -> None:
        self._subject, self._mapper, self._container = subject, mapper, container
        self._block, self._pause = block, pause
        self._compiled = library["refused" if subject.refusal else "granted"]
        self._compiled.argtypes = (ctypes.c_int, *([ctypes.c_uint64] * 3), ctypes.c_long)
        self._compiled.restype = ctypes.c_long
        self._incarnations = count()

    def all(self) -> dict[str, Callable[[int, int], Timed]]:
        """Return the contenders by name; each takes an offset in the region and a number of cycles."""
        return {
            _C: self._compiled_loop,
            _BARE: self._bare_loop,
            "worker's loop": self._worker_loop,
            "worker's loop, drawing": self._drawing_loop,
        }

    def _compiled_loop(self, offset: int, cycles: int) -> Timed:
        address, iova = self._mapper.where(self._subject.region, _SLOT, offset)
        descriptor = self._container.fileno()
        # The first pin faults the pages in: keep that out of the measured time.
        self._compiled(descriptor, address, iova, LENGTH, 1)
        return lambda: int(self._compiled(descriptor, address, iova, LENGTH, cycles))

    def _bare_loop(self, offset: int, cycles: int) -> Timed:
        address, iova = self._mapper.where(self._subject.region, _SLOT, offset)
        descriptor = self._container.fileno()
        map_it = DmaMap(ctypes.sizeof(DmaMap), _ACCESS, address, iova, LENGTH)
        unmap_it = DmaUnmap(ctypes.sizeof(DmaUnmap), 0, iova, LENGTH)
        refusal = self._subject.refusal
        if refusal:
            return lambda: _bare_refused(descriptor, map_it, cycles, refusal)
        return lambda: _bare_granted(descriptor, map_it, unmap_it, cycles)

    def _worker_loop(self, offset: int, cycles: int) -> Timed:
        choices = self._subject.choices(offset, cycles)
        return lambda: self._work(iter(choices))

    def _drawing_loop(self, offset: int, cycles: int) -> Timed:
        """Draw a choice of the scenario for each operation, as a worker does, but run the given one."""
        choices = self._subject.choices(offset, cycles)
        drawn = self._subject.plan.choices(next(self._incarnations))
        both = zip(islice(drawn, len(choices)), choices, strict=True)
        return lambda: self._work(map(itemgetter(1), both))

    def _work(self, choices: Iterator[Choice]) -> int:
        """Run the choices; return how many of them the ledger counts with the expected result."""
        before = self._good()
        work(self._block, self._pause, choices, self._mapper.calls(), self._subject.columns)
        return self._good() - before

    def _good(self) -> int:
        subject = self._subject
        cells = [(subject.map_cell, subject.refusal)]
        if subject.unmap_cell is not None:
            cells.append((subject.unmap_cell, 0))
        return sum(
            self._block.get("counts", cell, subject.columns[cell][outcome]) for cell, outcome in cells
        )


def _bare_granted(descriptor: int, map_it: DmaMap, unmap_it: DmaUnmap, cycles: int) -> int:
    ioctl, good = RAW_IOCTL, 0
    map_at, unmap_at = ctypes.byref(map_it), ctypes.byref(unmap_it)
    for _ in range(cycles):
        if ioctl(descriptor, VFIO_IOMMU_MAP_DMA, map_at) == 0:
            good += 1
        if ioctl(descriptor, VFIO_IOMMU_UNMAP_DMA, unmap_at) == 0:
            good += 1
    return good


def _bare_refused(descriptor: int, map_it: DmaMap, cycles: int, refusal: int) -> int:
    ioctl, errno, good = RAW_IOCTL, ctypes.get_errno, 0
    map_at = ctypes.byref(map_it)
    for _ in range(cycles):
        if ioctl(descriptor, VFIO_IOMMU_MAP_DMA, map_at) < 0 and errno() == refusal:
            good += 1
    return good
