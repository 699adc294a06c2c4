# SPDX-License-Identifier: GPL-2.0-only
"""An entry of the record of changes, and how one kind of change is made and undone."""

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

# What an entry knows: what was found before, and what was wanted. JSON values.
Facts = dict[str, Any]


@dataclass(frozen=True)
class Machine:
    """Where the kernel shows itself. Tests give directories of their own."""

    sysfs: Path = Path("/sys")
    sysctls: Path = Path("/proc/sys")
    boot: str = field(default_factory=boot_id)


@dataclass(frozen=True)
class Entry:
    """One change, written down before it is made."""

    number: int
    kind: str
    target: str
    facts: Facts
    boot_id: str
    run_id: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Outcome(StrEnum):
    """How putting something back went, where it went at all."""

    RESTORED = "restored"
    LEFT = "left"  # somebody else has changed it meanwhile: it is theirs now


class UnchangedError(UsageError):
    """A change was refused as a whole, so there is nothing to undo."""


@dataclass(frozen=True)
class Kind:
    """A kind of change. All but `by_hand` are called in a helper, which is killed after `seconds`.

    `look` changes nothing; it returns the facts to record, which `apply` and `undo` then get. Both may
    be called again after a crash at any moment, so each finds out how far the other came. They raise
    UsageError or OSError where it cannot be done, `apply` UnchangedError where it is sure that nothing
    was.
    """

    look: Callable[[Machine, str, Facts], Facts]
    apply: Callable[[Machine, str, Facts], None]
    undo: Callable[[Machine, str, Facts], tuple[Outcome, str]]
    # What a person has to do where `undo` fails: the end of a sentence.
    by_hand: Callable[[str, Facts], str]
    facts: Mapping[str, type | tuple[type, ...]]
    outlives_boot: bool
    seconds: float
    # Kinds that rest on this one: while one of them could not be undone, neither can this.
    carries: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Settled:
    """What became of one entry, for the journal."""

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
