# SPDX-License-Identifier: GPL-2.0-only
"""What the soak changes on a machine that people care about, and how it is put back.

A change is written down before it is made (record), made and undone by helpers (changes, and one module
for each kind of change), and put back at the end, or at the next start after a crash.
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
