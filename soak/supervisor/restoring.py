# SPDX-License-Identifier: GPL-2.0-only
"""`dax-soak restore`: undoes the changes of a dead soak without starting another.

Apart from `local`, whose imports are slow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from soak.machine.changes import RESTORED, Settled, restore_only
from soak.model.vocabulary import Level
from soak.run_directory import discard_unbegun
from soak.supervisor.ledger_store import rescue_ledgers

# The directory of this machine's record of changes.
STATE: Final = Path("/var/lib/dax-soak/changes")


def restore_here() -> list[Settled]:
    """Undo changes of dead soaks, rescue their ledgers, and remove directories of runs that never began.

    Raises:
        UsageError: a soak is running, or the record of changes cannot be read.
    """
    return [*restore_only(STATE, also=rescue_ledgers), *map(_removed, discard_unbegun())]


def _removed(path: Path) -> Settled:
    return Settled(
        RESTORED,
        Level.INFO,
        "directory",
        str(path),
        path.name,
        f"removed {path}, left by a run that was killed before it began",
    )
