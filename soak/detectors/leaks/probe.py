# SPDX-License-Identifier: GPL-2.0-only
"""A probe: does unmap release the page references of a long-term pin?"""

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
    """The references that one pin added, and those left after unmap.

    `refused` is the errno if the kernel refused the pin.
    """

    pinned: int
    left: int
    refused: int = 0

    @property
    def result(self) -> ProbeResult:
        """Whether the page stayed pinned; inconclusive if the pin was refused or added no reference."""
        if self.refused or self.pinned <= 0:
            return ProbeResult.INCONCLUSIVE
        return ProbeResult.CONFIRMED if self.left == self.pinned else ProbeResult.REFUTED

    @property
    def facts(self) -> dict[str, Any]:
        return {"pinned": self.pinned, "left": self.left, "errno": self.refused}


@dataclass(frozen=True)
class ProbePlace:
    """A region without other pins, the sum of its reference counts, and a long-term pin."""

    region: Region
    references: Callable[[], int]
    open_pin: Callable[[], LongTermPin]


def probe_pin(place: ProbePlace) -> PinProbe:
    """Pin one page for the long term and unmap it, in a helper process.

    Raises:
        HelperError: a call did not return in time, or the pin could not be opened.
    """
    before = place.references()

    def pin() -> list[int]:
        with contextlib.closing(place.open_pin()) as owner, place.region.map() as mapping:
            refused = owner.map(mapping.address, _IOVA, PAGE_SIZE, READ | WRITE)
            if refused:
                return [refused, before]
            # Drop this process's own mapping of the page, which counts as a reference since 6.15.
            mapping.advise(MADV_DONTNEED)
            pinned = place.references()
            owner.unmap(_IOVA, PAGE_SIZE)
            return [0, pinned]

    refused, pinned = in_helper(pin, _SECONDS)
    return PinProbe(pinned - before, place.references() - before, refused)


# The probe of each known leak.
PROBES: Final[dict[str, Callable[[ProbePlace], PinProbe]]] = {TYPE1_DEVICE_DAX_LEAK.name: probe_pin}
