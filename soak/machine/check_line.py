# SPDX-License-Identifier: GPL-2.0-only
"""What was found out about one thing: what it is good for, or why it is not, and what to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class State(StrEnum):
    """Good for a soak; missing, and it can be had; or there, and not to be used."""

    OK = "ok"
    MISSING = "MISS"
    NO = "no"


@dataclass(frozen=True)
class Objection:
    """Why something must not be used, and what would change that."""

    reason: str
    remedy: str

    def text(self) -> str:
        return f"{self.reason}: {self.remedy}" if self.remedy else self.reason


@dataclass(frozen=True)
class Finding:
    """One line of `dax-soak check`. `facts` are for programs: JSON values by name."""

    subject: str
    state: State
    says: str
    remedy: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "subject": self.subject,
            "state": self.state.lower(),
            "says": self.says,
            "remedy": self.remedy,
            **self.facts,
        }


def refused(
    subject: str, what: str, objections: Sequence[Objection], facts: Mapping[str, Any]
) -> Finding:
    """Return the finding of something that is there and has objections."""
    reasons = "; ".join(objection.reason for objection in objections)
    remedies = "; ".join(objection.remedy for objection in objections if objection.remedy)
    return Finding(subject, State.NO, f"{what}: {reasons}", remedies, facts)
