# SPDX-License-Identifier: GPL-2.0-only
"""Recycles a leaking region before a reference count overflows.

On a kernel that leaks references, every pin raises the counts of device-DAX pages. At 2^31 the kernel
refuses further pins: MAP_DMA fails with ENOMEM, with a warning (try_grab_folio(), mm/gup.c). Rebinding
the device to its driver reinitialises its pages (memmap_init_zone_device()).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from soak.detectors.leaks.sweeper import totals
from soak.journal.writer import Level
from soak.model.kernels import KernelRange
from soak.model.vocabulary import Role
from soak.process.helper import HelperError, in_helper
from soak.regions import DeviceDaxRegion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from soak.detectors.leaks.measure import RegionLeaks
    from soak.detectors.leaks.sweeper import Sweeper
    from soak.journal.writer import Journal
    from soak.ledger.writer import BlockWriter
    from soak.model.kernels import Release
    from soak.workload.pool import WorkerPool, WorkerProcess

_DRIVER: Final = Path("/sys/bus/dax/drivers/device_dax")
_RECYCLE_SECONDS: Final = 120.0
_APPEAR_SECONDS: Final = 30.0
_APPEAR_POLL_SECONDS: Final = 0.02
_END_SECONDS: Final = 30.0
# On 5.10 unbind waits in memunmap_pages() for the leaked references and never returns. It returns on 6.1,
# 6.12 and 7.2; releases between 5.10 and 6.1 are untested.
_UNBIND_RETURNS: Final = KernelRange((6, 1))
# Below this head-room a region that cannot be recycled ends the run: the soak itself would cause the next
# refusals.
_LAST_HEADROOM: Final = 0.01
_PARTS_PER_MILLION: Final = 1_000_000


@dataclass
class _Use:
    """The head-room of a region at the last sweep, and the expected one at the next."""

    headroom: float
    expected: float = 1.0


class Recycler:
    """Predicts when a region will run short of head-room, and recycles it before."""

    def __init__(
        self,
        block: BlockWriter,
        journal: Journal,
        pool: WorkerPool,
        sweeper: Sweeper,
        watches: Sequence[RegionLeaks],
        *,
        threshold: float,
        release: Release,
    ) -> None:
        """`threshold` is the share of head-room below which a region is recycled; 0 disables this."""
        self._block = block
        self._journal = journal
        self._pool = pool
        self._sweeper = sweeper
        self._watches = {
            watch.region.name: (watch, watch.region)
            for watch in watches
            if isinstance(watch.region, DeviceDaxRegion)
        }
        self._threshold = threshold
        self._unbind_returns = release in _UNBIND_RETURNS
        self._uses = {name: _Use(1.0) for name in self._watches}

    def make_room(self) -> str | None:
        """Recycle the regions that are short of head-room at the start, before any worker runs.

        Return the reason if one cannot be recycled.
        """
        for name, use in self._uses.items():
            use.headroom = use.expected = self._headroom(name)
        whys = [self._make_new(name, again=()) for name in self._short()]
        return next((why for why in whys if why is not None), None)

    def due(self) -> list[str]:
        """Return the regions that will be short of head-room by the next sweep at the current rate."""
        for name, use in self._uses.items():
            now = self._headroom(name)
            taken = max(use.headroom - now, 0.0)
            use.headroom = now
            # Allow the next interval to use twice as much as this one.
            use.expected = now - 2 * taken
        return self._short()

    def recycle(self, name: str) -> str | None:
        """Reinitialise the pages of a region; return the reason if that fails.

        All workers must rest. The mappers are stopped first and restarted afterwards.
        """
        mappers = [worker for worker in self._pool.workers if worker.plan.role is Role.MAPPER]
        return self._make_new(name, mappers)

    def _short(self) -> list[str]:
        return [
            name
            for name, (_, region) in self._watches.items()
            if self._uses[name].expected
            < (self._threshold if self._can_recycle(region) else _LAST_HEADROOM)
        ]

    def _can_recycle(self, region: DeviceDaxRegion) -> bool:
        return region.recyclable and self._unbind_returns and self._threshold > 0

    def _make_new(self, name: str, again: Sequence[WorkerProcess]) -> str | None:
        watch, region = self._watches[name]
        if self._can_recycle(region):
            return self._recycle(watch, region, again)
        return self._exhausted(region)

    def _headroom(self, name: str) -> float:
        position = self._block.index("headroom_ppm", name)
        return self._block.get("headroom_ppm", *position) / _PARTS_PER_MILLION

    def _exhausted(self, region: DeviceDaxRegion) -> str:
        why = f"the reference counts of region {region.name} are nearly full"
        how = (
            "this kernel hangs when a device with leaked references is recycled"
            if not self._unbind_returns
            else "set 'recyclable = true' in its [[region]] to let the soak recycle it, or recycle it "
            "by hand with 'ndctl disable-namespace' and 'ndctl enable-namespace'"
        )
        self._journal.write(
            "limit.reached",
            Level.ERROR,
            limit="headroom",
            region=region.name,
            headroom=self._uses[region.name].headroom,
            summary=f"{why}; {how}",
        )
        return why

    def _recycle(
        self, watch: RegionLeaks, region: DeviceDaxRegion, mappers: Sequence[WorkerProcess]
    ) -> str | None:
        """Stop the mappers, rebind the device and restart the mappers; return the reason of a failure."""
        start, before = time.monotonic(), self._headroom(region.name)
        if mappers:
            left = self._pool.retire(mappers, _END_SECONDS)
            if left:
                return self._failed(region, f"{', '.join(left)} did not end")
            # Closing their containers released their remaining pins, which may have leaked.
            self._sweeper.at_rest()
        try:
            in_helper(lambda: _rebind(region.path), _RECYCLE_SECONDS)
        except HelperError as error:
            return self._failed(region, str(error))
        given_back, explained, unexplained = totals(region, self._block, self._pool)
        watch.renew(given_back, explained, unexplained)
        self._sweeper.prepare()
        self._uses[region.name] = _Use(self._headroom(region.name))
        if mappers:
            self._sweeper.at_rest()
            self._pool.start(mappers)
        self._journal.write(
            "region.recycled",
            region=region.name,
            headroom_before=before,
            headroom=self._headroom(region.name),
            leaked=explained + unexplained,
            seconds=round(time.monotonic() - start, 3),
        )
        return None

    def _failed(self, region: DeviceDaxRegion, how: str) -> str:
        why = f"region {region.name} could not be recycled: {how}"
        self._journal.write("limit.reached", Level.ERROR, limit="recycle", summary=why)
        return why


def _rebind(device: Path) -> None:
    """Unbind a device from its driver and bind it again. May hang: run it in a helper."""
    (_DRIVER / "unbind").write_text(device.name)
    (_DRIVER / "bind").write_text(device.name)
    deadline = time.monotonic() + _APPEAR_SECONDS
    while not device.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{device} did not reappear")
        time.sleep(_APPEAR_POLL_SECONDS)
