# SPDX-License-Identifier: GPL-2.0-only
"""What goes along with a supervisor: told at each moment of its life, never holding it up."""

from __future__ import annotations


class Hook:
    """Does nothing, at every moment; others do something at some. No method may block."""

    def started(self) -> None:
        """Take note that the workers have started."""

    def beat(self) -> str | None:
        """Take part in a heartbeat; return why the run must end, where it must."""
        return None

    def sampled(self) -> None:
        """Take note that everything found so far is in journal and ledger."""

    def ended(self) -> None:
        """Take note that the workers are gone and all has been judged."""
