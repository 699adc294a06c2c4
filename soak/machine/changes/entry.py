# SPDX-License-Identifier: GPL-2.0-only
"""An entry of the record of changes, and the interface of a kind of change."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soak.abi.procfs import boot_id
from soak.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from soak.journal.writer import Level

# The state before a change, and the wanted state. JSON values.
Facts = dict[str, Any]


@dataclass(frozen=True)
class Machine:
    """Where sysfs and sysctls are. Tests use their own directories."""

    sysfs: Path = Path("/sys")
    sysctls: Path = Path("/proc/sys")
    boot: str = field(default_factory=boot_id)


@dataclass(frozen=True)
class Entry:
    """One change, recorded before it is made."""

    number: int
    kind: str
    target: str
    facts: Facts
    boot_id: str
    run_id: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Outcome(StrEnum):
    """How an undo ended, if it did not fail."""

    RESTORED = "restored"
    LEFT = "left"  # another program has changed it since, and now owns it


class UnchangedError(UsageError):
    """The kernel refused a change as a whole: there is nothing to undo."""


@dataclass(frozen=True)
class Kind:
    """A kind of change. A helper, killed after `seconds`, calls all functions but `by_hand`.

    `look` changes nothing; it returns the facts to record, which `apply` and `undo` receive. `undo` may
    follow a crash at any point, so it finds out how far `apply` or an earlier `undo` got. Both raise
    UsageError or OSError on failure; `apply` raises UnchangedError if it certainly changed nothing.
    """

    look: Callable[[Machine, str, Facts], Facts]
    apply: Callable[[Machine, str, Facts], None]
    undo: Callable[[Machine, str, Facts], tuple[Outcome, str]]
    # What to do by hand if `undo` fails: the end of a sentence.
    by_hand: Callable[[str, Facts], str]
    facts: Mapping[str, type | tuple[type, ...]]
    outlives_boot: bool
    seconds: float
    # Kinds that depend on this one: while one of them cannot be undone, neither can this.
    carries: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Settled:
    """The outcome of one entry's undo, for the journal."""

    event: str
    level: Level
    kind: str
    target: str
    run_id: str
    summary: str

    @property
    def fields(self) -> dict[str, str]:
        """The event's own fields."""
        return {"kind": self.kind, "target": self.target, "of_run": self.run_id, "summary": self.summary}


RESTORED = "change.restored"
FORGOTTEN = "change.forgotten"
FAILED = "change.failed"
