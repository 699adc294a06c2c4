"""The kinds of change that the soak makes to a machine: the one list that record and custody go by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from soak.custody.bindings import BINDING
from soak.custody.frozen import FROZEN
from soak.custody.modules import KERNEL_MODULE
from soak.custody.sysctls import SYSCTL
from soak.custody.trees import TREE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from soak.custody.entry import Kind

KINDS: Final[Mapping[str, Kind]] = {
    "binding": BINDING,
    "directory": TREE,
    "freeze": FROZEN,
    "module": KERNEL_MODULE,
    "sysctl": SYSCTL,
}
