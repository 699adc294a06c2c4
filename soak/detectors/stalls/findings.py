# SPDX-License-Identifier: GPL-2.0-only
"""Turns judgements of waits and pins into findings, with the known issue that explains each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from soak.detectors.base import Finding
from soak.detectors.stalls.evidence import of_canary
from soak.detectors.tasks import waits_for_pages
from soak.model.known_issues import KNOWN_ISSUES, Observation
from soak.model.vocabulary import Interface, Operation, ProbeResult, RegionKind, Violation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from soak.detectors.probes import ProbeRecord
    from soak.detectors.stalls.judge import Judgement, Overdue


class Explanation(NamedTuple):
    """The interface of the responsible pin, and the known issue that predicts the violation.

    `undecided` is the issue that would predict it but has an inconclusive probe.
    """

    interface: Interface
    known_issue: str | None = None
    undecided: str | None = None


def explain(
    judgement: Judgement, violation: Violation, task: Mapping[str, Any], probes: ProbeRecord
) -> Explanation:
    """Compare a violation with the applicable known issues; `task` is the waiting task, or empty."""
    wait, holds, last = judgement.wait, judgement.holds, judgement.last
    if judgement.behind is not None:
        return Explanation(judgement.behind.interface)
    unexplained = Explanation(last.interface if last else Interface.NONE)
    if not wait.end and not waits_for_pages(task.get("stack", ())):
        return unexplained
    seen = Observation(
        violation,
        RegionKind.FS_DAX,
        tuple(hold.interface for hold in holds),
        ended=bool(wait.end),
        # By one of several pins, by a repeated one, or by one that is still being taken page by page.
        pinned_again=len(holds) > 1 or any(hold.may_be_taken_after(wait.start) for hold in holds),
    )
    undecided = None
    for issue in KNOWN_ISSUES:
        result = probes.result(issue.name)
        if result is None or not issue.explains(seen):
            continue
        *_, interface = (each for each in seen.interfaces if each in issue.interfaces)
        if result is ProbeResult.CONFIRMED:
            return Explanation(interface, issue.name)
        if result is ProbeResult.INCONCLUSIVE and undecided is None:
            undecided = Explanation(interface, undecided=issue.name)
    return undecided or unexplained


def wait_finding(
    judgement: Judgement, violation: Violation, explanation: Explanation, evidence: Mapping[str, Any]
) -> Finding:
    """Return the finding for an invalidation."""
    wait, interface = judgement.wait, explanation.interface
    if violation is Violation.EARLY_TRUNCATE:
        what = f"returned before a pin over {interface} was released that it had to wait for"
    elif judgement.behind is not None:
        what = f"waits for a pin over {interface} that its holder cannot release"
    elif interface is Interface.NONE:
        what = "did not return, although no page that it had to wait for was pinned"
    elif violation is Violation.STALL:
        what = f"kept sleeping after the last pin over {interface} was released"
    else:
        what = f"woke up late after the last pin over {interface} was released"
    if explanation.known_issue is not None:
        what += f", as {explanation.known_issue} predicts"
    return Finding(
        violation,
        RegionKind.FS_DAX,
        interface,
        wait.operation,
        1,
        f"{wait.operation} of {RegionKind.FS_DAX} {what}",
        wait.region,
        explanation.known_issue,
        evidence,
        undecided=explanation.undecided,
    )


def overdue_finding(overdue: Overdue, evidence: Mapping[str, Any]) -> Finding:
    """Return the finding for an overdue pin."""
    hold = overdue.hold
    what = "lasts" if hold.take_after else "is being taken"
    return Finding(
        Violation.STALL,
        RegionKind.FS_DAX,
        hold.interface,
        Operation.HOLD,
        1,
        f"a pin of {RegionKind.FS_DAX} over {hold.interface} {what} for more than "
        f"{overdue.bound / 1e9:g} s, and its holder hangs in the kernel",
        overdue.region,
        evidence=evidence,
    )


def canary_finding(judgement: Judgement, violation: Violation) -> Finding:
    """Return the finding for a canary, which no known issue explains."""
    wait, last = judgement.wait, judgement.last
    return Finding(
        violation,
        RegionKind.FS_DAX,
        last.interface if last else Interface.NONE,
        wait.operation,
        1,
        f"{wait.operation} of {RegionKind.FS_DAX}: {violation}",
        wait.region,
        evidence=of_canary(judgement),
        canary=True,
    )
