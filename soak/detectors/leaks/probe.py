# SPDX-License-Identifier: GPL-2.0-only
"""A probe: does the kernel drop the page reference of a long-term pin when it is unmapped?"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from soak.abi.mmap import MADV_DONTNEED
from soak.model.known_issues import TYPE1_DEVICE_DAX_LEAK
from soak.model.vocabulary import ProbeResult
from soak.process.helper import in_helper
from soak.regions.pages import PAGE_SIZE
from soak.workload.pins.long_term import READ, WRITE

if TYPE_CHECKING:
    from collections.abc import Callable

    from soak.regions import Region
    from soak.workload.pins.long_term import LongTermPin

_IOVA: Final = 0x1_4000_0000
_SECONDS: Final = 60.0


@dataclass(frozen=True)
class PinProbe:
    """What became of one pin: references that it added, and those that remained when it was unmapped.

    `refused` is the errno where the kernel did not grant the pin.
    """

    pinned: int
    left: int
    refused: int = 0

    @property
    def result(self) -> ProbeResult:
        """Whether the page stayed pinned: a pin that was refused, or not counted, shows nothing."""
        if self.refused or self.pinned <= 0:
            return ProbeResult.INCONCLUSIVE
        return ProbeResult.CONFIRMED if self.left == self.pinned else ProbeResult.REFUTED

    @property
    def facts(self) -> dict[str, Any]:
        return {"pinned": self.pinned, "left": self.left, "errno": self.refused}


@dataclass(frozen=True)
class ProbePlace:
    """A region that nothing else pins, what sums the reference counts of its pages, and a way to pin."""

    region: Region
    references: Callable[[], int]
    open_pin: Callable[[], LongTermPin]


def probe_pin(place: ProbePlace) -> PinProbe:
    """Pin one page for the long term and unmap it again, in a helper.

    Raises:
        HelperError: the kernel does not return, or the pin cannot be opened.
    """
    before = place.references()

    def pin() -> list[int]:
        with contextlib.closing(place.open_pin()) as owner, place.region.map() as mapping:
            refused = owner.map(mapping.address, _IOVA, PAGE_SIZE, READ | WRITE)
            if refused:
                return [refused, before]
            # The pin took the page through this process's mapping, which counts since 6.15.
            mapping.advise(MADV_DONTNEED)
            pinned = place.references()
            owner.unmap(_IOVA, PAGE_SIZE)
            return [0, pinned]

    refused, pinned = in_helper(pin, _SECONDS)
    return PinProbe(pinned - before, place.references() - before, refused)


# How each known issue of leaks is probed.
PROBES: Final[dict[str, Callable[[ProbePlace], PinProbe]]] = {TYPE1_DEVICE_DAX_LEAK.name: probe_pin}
