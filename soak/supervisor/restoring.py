# SPDX-License-Identifier: GPL-2.0-only
"""What an earlier soak left behind on this machine, put back without another soak.

It stands apart from the start of a run, for it has to be there at once and imports little.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from soak.machine.changes import RESTORED, Settled, restore_only
from soak.model.vocabulary import Level
from soak.run_directory import discard_unbegun
from soak.supervisor.ledger_store import bring_home

# Where this machine keeps the record of what soaks have taken.
STATE: Final = Path("/var/lib/dax-soak/changes")


def restore_here() -> list[Settled]:
    """Put back what earlier soaks left behind on this machine, without starting another one.

    Raises:
        UsageError: a soak is running, or the record of what it took cannot be read.
    """
    return [*restore_only(STATE, also=bring_home), *map(_removed, discard_unbegun())]


def _removed(path: Path) -> Settled:
    return Settled(
        RESTORED,
        Level.INFO,
        "directory",
        str(path),
        path.name,
        f"removed {path}, which a run left that was killed before it began",
    )
