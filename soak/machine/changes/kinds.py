# SPDX-License-Identifier: GPL-2.0-only
"""The one list of the kinds of change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from soak.machine.changes.bindings import BINDING
from soak.machine.changes.modules import KERNEL_MODULE
from soak.machine.changes.sysctls import SYSCTL
from soak.machine.changes.trees import TREE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from soak.machine.changes.entry import Kind

KINDS: Final[Mapping[str, Kind]] = {
    "binding": BINDING,
    "directory": TREE,
    "module": KERNEL_MODULE,
    "sysctl": SYSCTL,
}
