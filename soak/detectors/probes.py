# SPDX-License-Identifier: GPL-2.0-only
"""What the probes of known issues have in common: three answers, and the record of them.

Each kind of detector that can meet a known issue has a module `probe` with one table, `PROBES`: the
name of an issue, and what probes it in a `ProbePlace` of that module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from soak.model.vocabulary import ProbeResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from soak.detectors.reporter import Reporter


class Answer(Protocol):
    """What one probe has shown."""

    @property
    def result(self) -> ProbeResult:
        """Whether the kernel has the issue; inconclusive where the probe could not show it."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What was observed, for the journal."""


class ProbeRecord:
    """The last answer to each probe of one detector; an inconclusive one is asked for again.

    Where each region has a probe of its own, `region` names it.
    """

    def __init__(self, reporter: Reporter, applying: frozenset[str]) -> None:
        """Take the names of the issues that configuration and kernel release let explain anything."""
        self._reporter = reporter
        self._applying = applying
        self._results: dict[tuple[str, str | None], ProbeResult] = {}

    @property
    def empty(self) -> bool:
        """Whether nothing was probed yet."""
        return not self._results

    def applies(self, issue: str) -> bool:
        """Say whether the issue may explain anything in this run."""
        return issue in self._applying

    def is_open(self, issue: str, region: str | None = None) -> bool:
        """Say whether a probe has still to be made: the first, or one after an inconclusive one."""
        return self._results.get((issue, region)) in {None, ProbeResult.INCONCLUSIVE}

    def result(self, issue: str, region: str | None = None) -> ProbeResult | None:
        """Return the last answer; None where the issue does not apply or was not probed."""
        return self._results.get((issue, region)) if self.applies(issue) else None

    @property
    def undecided(self) -> bool:
        """Whether a probe of an issue that applies was inconclusive."""
        return any(
            result is ProbeResult.INCONCLUSIVE and self.applies(issue)
            for (issue, _), result in self._results.items()
        )

    def note(self, issue: str, answer: Answer, region: str | None = None) -> None:
        """Keep an answer, and report it."""
        self._results[issue, region] = answer.result
        self._reporter.probed(
            issue, answer.result, applies=self.applies(issue), region=region, **answer.facts
        )
