# SPDX-License-Identifier: GPL-2.0-only
"""Changes that the soak makes to a machine, and how it restores them.

Each change is recorded before it is made (record), made and undone in helper processes (changes, and one
module for each kind), and undone at the end of the run, or at the next start after a crash.
"""

from soak.machine.changes.changes import MachineChanges, restore_only
from soak.machine.changes.entry import FAILED, FORGOTTEN, RESTORED, Entry, Machine, Settled
from soak.machine.changes.sysctls import Demand, Span
from soak.process.limits import limit_worker, protect_supervisor, raise_limits

__all__ = (
    "FAILED",
    "FORGOTTEN",
    "RESTORED",
    "Demand",
    "Entry",
    "Machine",
    "MachineChanges",
    "Settled",
    "Span",
    "limit_worker",
    "protect_supervisor",
    "raise_limits",
    "restore_only",
)
