"""The report for a terminal: verdict first, then what was found, then how much was looked at."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Final

from soak.output import complain, put
from soak.printable import printable
from soak.rundir import READABLE, REPORT, VERDICT, write_whole

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from soak.verdict import Verdict, ViolationSummary

WIDTH: Final = 79


def text_report(verdict: Verdict, directory: Path) -> str:
    """Return the report in lines of less than 80 columns (paths may be longer)."""
    return printable("\n".join(_lines(verdict, directory))) + "\n"


def publish(verdict: Verdict, directory: Path) -> None:
    """Write verdict and report into the run directory, and print the report.

    Where the disk is full it is printed all the same.
    """
    report = text_report(verdict, directory)
    try:
        write_whole(directory / VERDICT, verdict.to_json().encode(), READABLE)
        write_whole(directory / REPORT, report.encode(), READABLE)
    except OSError as error:
        complain(
            f"dax-soak: verdict and report cannot be written to {directory} ({error.strerror}): "
            f"'dax-soak report {directory}' computes them again from the journal."
        )
    put(report)


def _lines(verdict: Verdict, directory: Path) -> Iterator[str]:
    yield f"verdict   {verdict.verdict.upper()}"
    for number, reason in enumerate(verdict.reasons):
        yield from _wrapped(reason, "because   " if number == 0 else "      and ")
    yield f"run       {verdict.run_id}"
    yield f"kernel    {verdict.kernel or 'never told'}"
    yield f"from      {verdict.started or 'never started'}"
    yield f"to        {verdict.ended}"
    yield f"seed      {verdict.seed}"
    yield ""
    yield "found"
    if not verdict.violations:
        yield "  nothing: the kernel kept every promise that was looked at"
    for violation in verdict.violations:
        yield from _violation(violation)
    yield ""
    yield f"{'operation':<15} {'region':<11} {'interface':<11} {'completed':>12} {'needed':>8}"
    for cell in verdict.coverage:
        yield (
            f"{cell.operation:<15} {cell.region:<11} {cell.interface:<11} "
            f"{cell.attempts:>12,} {cell.required:>8,}"
        )
    yield ""
    for canary in verdict.canaries:
        yield (
            f"canaries  detector {canary['detector']}: {canary['seen']:,} of {canary['made']:,} seen"
        )
    yield f"journal   {directory / 'journal.jsonl'}"
    yield f"verdict   {directory / 'verdict.json'}"
    yield f"report    {directory / 'report.txt'}"


def _violation(violation: ViolationSummary) -> Iterator[str]:
    yield f"  {violation.kind}, {_counted(violation)}"
    yield from _wrapped(violation.summary, "    ")
    if violation.known_issue is not None:
        yield f"    known issue: {violation.known_issue}"
    yield f"    first seen: event {violation.first_event} of the journal"


def _counted(violation: ViolationSummary) -> str:
    unit = "page reference" if violation.kind == "leak" else "time"
    return f"{violation.count:,} {unit}{'' if violation.count == 1 else 's'}"


def _wrapped(text: str, first: str) -> Iterator[str]:
    yield from textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_on_hyphens=False,
    )
