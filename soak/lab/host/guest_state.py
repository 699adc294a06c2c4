# SPDX-License-Identifier: GPL-2.0-only
"""The state of a guest, as its host sees it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class GuestState:
    """What its host knows of a guest that it watches."""

    booted: bool = False
    ready: bool = False
    failure: str | None = None
    exit_code: int | None = None
    lost: bool = False
    alive: int = 0
    soaking: bool = False
    # Whether its run has ended: what is judged was seen.
    over: bool = False
    boot_id: str = ""
    clock_wrong: bool = False
