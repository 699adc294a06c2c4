# SPDX-License-Identifier: GPL-2.0-only
"""One line of `dax-soak check`: the state of one subject, the reason, and the remedy."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class State(StrEnum):
    """Usable; missing; or present and not to be used."""

    OK = "ok"
    MISSING = "MISS"
    NO = "no"


@dataclass(frozen=True)
class Objection:
    """Why a subject must not be used, and how to change that."""

    reason: str
    remedy: str

    def text(self) -> str:
        return f"{self.reason}: {self.remedy}" if self.remedy else self.reason


@dataclass(frozen=True)
class Finding:
    """One line of `dax-soak check`. `facts` go into the JSON output alone."""

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
    """Return the finding of a present subject that has objections."""
    reasons = "; ".join(objection.reason for objection in objections)
    remedies = "; ".join(objection.remedy for objection in objections if objection.remedy)
    return Finding(subject, State.NO, f"{what}: {reasons}", remedies, facts)
