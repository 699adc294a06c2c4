# SPDX-License-Identifier: GPL-2.0-only
"""Probes of known issues: their three results, and the record of them.

Each detector with known issues has a module `probe` with one table, `PROBES`: it maps the name of an
issue to the function that probes it in a `ProbePlace` of that module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from soak.model.vocabulary import ProbeResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from soak.detectors.reporter import Reporter


class Answer(Protocol):
    """The result of one probe."""

    @property
    def result(self) -> ProbeResult:
        """Whether the kernel has the issue, or inconclusive."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """The observations, for the journal."""


class ProbeRecord:
    """The last result of each probe of one detector; inconclusive probes run again.

    `region` names the region if the detector probes each one separately.
    """

    def __init__(self, reporter: Reporter, applying: frozenset[str]) -> None:
        """`applying` names the issues that apply to this configuration and kernel release."""
        self._reporter = reporter
        self._applying = applying
        self._results: dict[tuple[str, str | None], ProbeResult] = {}

    @property
    def empty(self) -> bool:
        """Whether no probe has run yet."""
        return not self._results

    def applies(self, issue: str) -> bool:
        """Return whether the issue may explain a finding of this run."""
        return issue in self._applying

    def is_open(self, issue: str, region: str | None = None) -> bool:
        """Return whether the probe must run: it has not run yet, or was inconclusive."""
        return self._results.get((issue, region)) in {None, ProbeResult.INCONCLUSIVE}

    def result(self, issue: str, region: str | None = None) -> ProbeResult | None:
        """Return the last result; None if the issue does not apply or its probe has not run."""
        return self._results.get((issue, region)) if self.applies(issue) else None

    @property
    def undecided(self) -> bool:
        """Whether the last probe of an applicable issue was inconclusive."""
        return any(
            result is ProbeResult.INCONCLUSIVE and self.applies(issue)
            for (issue, _), result in self._results.items()
        )

    def note(self, issue: str, answer: Answer, region: str | None = None) -> None:
        """Store a result and report it."""
        self._results[issue, region] = answer.result
        self._reporter.probed(
            issue, answer.result, applies=self.applies(issue), region=region, **answer.facts
        )
