"""Where findings go: a violation is on disk before it is counted.

On a full disk it may be held in memory only, and is counted all the same: a count that is too low would
hide it, whereas the journal says that it holds lines and, should they be lost, which.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from soak.journal import Level
from soak.schema import NO_KNOWN_ISSUE
from soak.vocabulary import Violation

if TYPE_CHECKING:
    from soak.detectors.finding import Finding
    from soak.journal import Journal
    from soak.ledger import BlockWriter


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
            summary=finding.summary,
            evidence=dict(finding.evidence),
        )
        issue = finding.known_issue or NO_KNOWN_ISSUE
        self._block.add_at("violations", finding.count, finding.kind, issue)
        if finding.kind is Violation.UNEXPECTED_PIN:
            self._block.add_at("unexpected_pins", finding.count, finding.region, finding.interface)


def _key(finding: Finding) -> _Key:
    """What makes two findings the same but for their number; a sentence names the errno."""
    place = (finding.region_name or finding.region, finding.interface, finding.operation)
    wording = "" if finding.kind is Violation.LEAK else finding.summary
    return (finding.kind, *place, finding.known_issue or NO_KNOWN_ISSUE, wording)
