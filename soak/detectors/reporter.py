# SPDX-License-Identifier: GPL-2.0-only
"""The reporter writes a violation to the journal, on disk, before it counts the violation in the ledger.

On a full disk the journal may hold the line in memory. The reporter counts the violation nevertheless: a
low count would hide it, whereas the journal reports held lines and the numbers of lost ones.
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

    It writes the first violation of a kind at once. A faulty kernel may repeat it thousands of times a
    second, so the reporter merges repetitions and writes their number every `REPORT_SECONDS`.
    """

    def __init__(self, block: BlockWriter, journal: Journal) -> None:
        self._block = block
        self._journal = journal
        self._gathered: dict[_Key, Finding] = {}
        self._written: dict[_Key, float] = {}
        self._canaries: list[Finding] = []
        # The last result of each probe by issue and by region (None: the probe covers all regions).
        self._probes: dict[str, dict[str | None, ProbeResult]] = defaultdict(dict)

    def report(self, finding: Finding) -> None:
        """Accept a violation, and write it now or in a later `flush`.

        A canary is not a violation: keep it for `take_canaries`.
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
        """Return the canaries that detectors found since the last call."""
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
        """Write the result of a probe to the journal, and count the violations that were undecided.

        `applies`: the issue applies to this configuration and kernel release. If the regions have
        separate probes, the issue is decided once all their results agree.
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
        """Count all undecided violations as unexplained, at the end of the run."""
        for issue in self._block.names("undecided"):
            self._decide(issue, None)

    def _decide(self, issue: str, explanation: str | None) -> None:
        """Count the undecided violations of an issue.

        A supervisor that dies in between may count them twice, but never loses one.
        """
        for kind in Violation:
            place = self._block.index("undecided", issue, kind)
            if count := self._block.get("undecided", *place):
                self._block.add_at("violations", count, kind, explanation or NO_KNOWN_ISSUE)
                self._block.set("undecided", 0, *place)

    @property
    def idle(self) -> bool:
        """Whether all reported violations are written."""
        return not self._gathered

    def flush(self, age: float = 0.0) -> None:
        """Write the merged violations of each kind last written at least `age` seconds ago, or never."""
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
    """Return the key by which findings merge. The summary is part of it because it names the errno."""
    place = (finding.region_name or finding.region, finding.interface, finding.operation)
    wording = "" if finding.kind is Violation.LEAK else finding.summary
    issue = finding.known_issue or finding.undecided or NO_KNOWN_ISSUE
    return (finding.kind, *place, issue, str(finding.undecided), wording)
