# SPDX-License-Identifier: GPL-2.0-only
"""The interface of a supervisor's hook."""

from __future__ import annotations


class Hook:
    """Base class, which does nothing. No method may block."""

    def started(self) -> None:
        """Called when the workers have started."""

    def beat(self) -> str | None:
        """Called at each heartbeat; returns a reason to end the run, or None."""
        return None

    def sampled(self) -> None:
        """Called when journal and ledger have everything found so far."""

    def ended(self) -> None:
        """Called when the workers have ended and everything is judged."""
