# SPDX-License-Identifier: GPL-2.0-only
"""Where findings go: a violation is on disk before it is counted.

On a full disk it may be held in memory only, and is counted all the same: a count that is too low would
hide it, whereas the journal says that it holds lines and, should they be lost, which.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from soak.journal.writer import Level
from soak.ledger.schema import NO_KNOWN_ISSUE
from soak.model.vocabulary import ProbeResult, Violation

if TYPE_CHECKING:
    from soak.detectors.base import Finding
    from soak.journal.writer import Journal
    from soak.ledger.writer import BlockWriter


REPORT_SECONDS: Final = 5.0
_Key = tuple[str, ...]


class Reporter:
    """Writes violations to the journal and counts them in the supervisor's block.

    The first of its kind is written at once. A kernel that breaks a promise breaks it thousands of
    times a second: what follows is gathered, and written every few seconds with its number.
    """

    def __init__(self, block: BlockWriter, journal: Journal) -> None:
        self._block = block
        self._journal = journal
        self._gathered: dict[_Key, Finding] = {}
        self._written: dict[_Key, float] = {}
        self._canaries: list[Finding] = []
        # What probes have shown, by issue and region where there is one for each.
        self._probes: dict[str, dict[str | None, ProbeResult]] = defaultdict(dict)

    def report(self, finding: Finding) -> None:
        """Take a violation in: it is written now, or by a `flush` that comes soon.

        What the soak broke itself is no violation: it waits for `take_canaries`.
        """
        if finding.canary:
            self._canaries.append(finding)
            return
        key = _key(finding)
        before = self._gathered.get(key)
        if before is not None:
            finding = replace(finding, count=finding.count + before.count)
        self._gathered[key] = finding
        self.flush(REPORT_SECONDS)

    def take_canaries(self) -> list[Finding]:
        """Return the canaries that detectors have found since the last call."""
        found, self._canaries = self._canaries, []
        return found

    def probed(
        self,
        issue: str,
        result: ProbeResult,
        *,
        applies: bool,
        region: str | None = None,
        **facts: Any,  # noqa: ANN401 - for JSON
    ) -> None:
        """Write down what a probe has shown, and count what waited for that.

        `applies` says whether the configuration and the kernel's release let the issue explain anything.
        Where each region has a probe, an issue is decided when all of them have shown the same.
        """
        if region is not None:
            facts["region"] = region
        self._journal.write(
            "known-issue.probed",
            Level.WARNING if applies and result is ProbeResult.INCONCLUSIVE else Level.INFO,
            known_issue=issue,
            result=result,
            applies=applies,
            **facts,
        )
        self._probes[issue][region] = result
        shown = set(self._probes[issue].values())
        result = shown.pop() if len(shown) == 1 else ProbeResult.INCONCLUSIVE
        for column in ProbeResult:
            self._block.set_at("probes", int(column is result), issue, column)
        if result is not ProbeResult.INCONCLUSIVE:
            explains = applies and result is ProbeResult.CONFIRMED
            self._decide(issue, issue if explains else None)

    def give_up_deciding(self) -> None:
        """Count what no probe has decided as what nothing explains: the run ends."""
        for issue in self._block.names("undecided"):
            self._decide(issue, None)

    def _decide(self, issue: str, explanation: str | None) -> None:
        """Count what waited for this: twice where a supervisor dies in between, and never not at all."""
        for kind in Violation:
            place = self._block.index("undecided", issue, kind)
            if count := self._block.get("undecided", *place):
                self._block.add_at("violations", count, kind, explanation or NO_KNOWN_ISSUE)
                self._block.set("undecided", 0, *place)

    @property
    def idle(self) -> bool:
        """Whether everything that was reported is written."""
        return not self._gathered

    def flush(self, age: float = 0.0) -> None:
        """Write what was gathered of kinds that were last written `age` seconds ago, or never."""
        now = time.monotonic()
        for key, finding in list(self._gathered.items()):
            if now - self._written.get(key, -math.inf) >= age:
                self._written[key] = now
                del self._gathered[key]
                self._write(finding)

    def _write(self, finding: Finding) -> None:
        self._journal.write(
            "violation.found",
            Level.ERROR if finding.known_issue is None else Level.WARNING,
            kind=finding.kind,
            region=finding.region,
            region_name=finding.region_name,
            interface=finding.interface,
            operation=finding.operation,
            count=finding.count,
            known_issue=finding.known_issue,
            undecided=finding.undecided,
            summary=finding.summary,
            evidence=dict(finding.evidence),
        )
        if finding.undecided is None:
            self._count(finding)
        else:
            self._block.add_at("undecided", finding.count, finding.undecided, finding.kind)

    def _count(self, finding: Finding) -> None:
        issue = finding.known_issue or NO_KNOWN_ISSUE
        self._block.add_at("violations", finding.count, finding.kind, issue)
        if finding.kind is Violation.UNEXPECTED_PIN:
            self._block.add_at("unexpected_pins", finding.count, finding.region, finding.interface)


def _key(finding: Finding) -> _Key:
    """What makes two findings the same but for their number; a sentence names the errno."""
    place = (finding.region_name or finding.region, finding.interface, finding.operation)
    wording = "" if finding.kind is Violation.LEAK else finding.summary
    issue = finding.known_issue or finding.undecided or NO_KNOWN_ISSUE
    return (finding.kind, *place, issue, str(finding.undecided), wording)
