# SPDX-License-Identifier: GPL-2.0-only
"""The report for a terminal: coverage, then violations, and the verdict last."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from soak.files.printable import printable
from soak.process.output import put, put_error
from soak.run_directory import READABLE, REPORT, VERDICT, write_whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from soak.verdict import Verdict, ViolationSummary

WIDTH: Final = 79
# textwrap takes quadratic time, and a guest may have sent the text.
_LONGEST: Final = 2000


def text_report(verdict: Verdict, directory: Path) -> str:
    """Return the report in lines of less than 80 columns (paths may be longer)."""
    return printable("\n".join(_lines(verdict, directory))) + "\n"


def publish(verdict: Verdict, directory: Path) -> None:
    """Write verdict and report to the run directory; print the report even if that fails."""
    report = text_report(verdict, directory)
    try:
        write_whole(directory / VERDICT, verdict.to_json().encode(), READABLE)
        write_whole(directory / REPORT, report.encode(), READABLE)
    except OSError as error:
        put_error(
            f"dax-soak: cannot write verdict and report to {directory} ({error.strerror}): "
            f"'dax-soak report {directory}' recomputes them from the journal."
        )
    put(report)


def _lines(verdict: Verdict, directory: Path) -> Iterator[str]:
    """Yield the least important lines first, because the end stays on the screen."""
    yield f"{'operation':<15} {'region':<11} {'interface':<11} {'completed':>12} {'needed':>8}"
    for cell in verdict.coverage:
        yield (
            f"{cell.operation:<15} {cell.region:<11} {cell.interface:<11} "
            f"{cell.attempts:>12,} {cell.required:>8,}"
        )
    yield ""
    for canary in verdict.canaries:
        yield (f"canaries  detector {canary['detector']}: {canary['seen']:,} of {canary['made']:,} seen")
    yield f"journal   {directory / 'journal.jsonl'}"
    yield f"report    {directory / 'report.txt'}"
    yield f"run       {verdict.run_id}"
    yield f"kernel    {verdict.kernel or 'unknown'}"
    yield f"from      {verdict.started or 'never started'}"
    yield f"to        {verdict.ended}"
    yield f"seed      {verdict.seed}"
    yield ""
    yield from _unexplained([entry for entry in verdict.violations if entry.known_issue is None])
    yield from _expected([entry for entry in verdict.violations if entry.known_issue is not None])
    yield ""
    for number, reason in enumerate(verdict.reasons):
        yield from _wrapped(reason, "because   " if number == 0 else "      and ")
    yield f"verdict   {verdict.verdict.upper()}"


def _unexplained(found: Sequence[ViolationSummary]) -> Iterator[str]:
    yield "unexplained"
    if not found:
        yield "  nothing"
    for violation in found:
        yield f"  {violation.kind}, {_counted(violation.kind, violation.count)}"
        yield from _wrapped(violation.summary, "    ")
        yield f"    first seen: event {violation.first_event} of the journal"


def _expected(found: Sequence[ViolationSummary]) -> Iterator[str]:
    """Yield the violations that confirmed known issues explain."""
    by_issue: dict[tuple[str, str], list[ViolationSummary]] = defaultdict(list)
    for violation in found:
        by_issue[str(violation.known_issue), violation.kind].append(violation)
    if by_issue:
        yield "expected (known issues that probes confirmed on this kernel)"
    for (issue, kind), violations in sorted(by_issue.items()):
        count = _counted(kind, sum(violation.count for violation in violations))
        first = min(violation.first_event for violation in violations)
        yield from _wrapped(f"{issue}: {kind}, {count}, first in event {first}", "  ", "    ")


def _counted(kind: str, count: int) -> str:
    unit = "page reference" if kind == "leak" else "time"
    return f"{count:,} {unit}{'' if count == 1 else 's'}"


def _wrapped(text: str, first: str, following: str | None = None) -> Iterator[str]:
    yield from textwrap.wrap(
        text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…",
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first) if following is None else following,
        break_on_hyphens=False,
    )
