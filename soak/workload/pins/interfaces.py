# SPDX-License-Identifier: GPL-2.0-only
"""The table of long-term interfaces. Mappers use every interface in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from soak.workload.pins.vfio_type1 import VFIO_TYPE1

if TYPE_CHECKING:
    from collections.abc import Sequence

    from soak.model.vocabulary import Interface
    from soak.workload.pins.long_term import LongTermInterface

LONG_TERM_INTERFACES: Final[tuple[LongTermInterface, ...]] = (VFIO_TYPE1,)


def chosen_interfaces(chosen: Sequence[Interface]) -> tuple[LongTermInterface, ...]:
    """Return the entries of the chosen interfaces, or all entries if none is chosen."""
    known = {entry.interface: entry for entry in LONG_TERM_INTERFACES}
    return tuple(known[interface] for interface in dict.fromkeys(chosen)) or LONG_TERM_INTERFACES
