# SPDX-License-Identifier: GPL-2.0-only
"""How long a lab's host waits, and for what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from soak.lab.host.guest_clock import SPANS


@dataclass(frozen=True)
class Timing:
    """The host's beat and its deadlines.

    A deadline in beats counts each beat for the share of it in which the guest had a processor
    (see `ProcessorShare`): a guest on a loaded host is slow, and not late.
    """

    beat_seconds: float = 0.5
    # Without any sign of a guest that is ready, or still prepares.
    silent_beats: float = 60
    prepare_beats: float = 600
    # Without a heartbeat of its supervisor alone.
    stuck_beats: float = 180
    # Until a silent guest has panicked at an NMI.
    nmi_beats: float = 60
    # Until a soak has ended that was asked to, and until its guest has powered off then.
    end_beats: float = 360
    off_beats: float = 60
    # Until what QEMU had sent before its end is read.
    drain_seconds: float = 5.0
    # For a command of QEMU's monitor, `quit` included.
    command_seconds: float = 10.0
    # What the guest has beside its soak's duration, and what the whole boot has.
    guest_grace_seconds: float = 300.0
    beside_seconds: float = 1200.0
    # See `GuestClock`.
    clock_spans: tuple[tuple[float, float], ...] = SPANS


DEFAULT_TIMING: Final = Timing()
