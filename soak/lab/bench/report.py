# SPDX-License-Identifier: GPL-2.0-only
"""Reports of a benchmark: medians over rounds, and ratios between contenders of one round."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from soak.lab.bench.series import Series

_NANOSECONDS: Final = 1e9
_NAME_WIDTH, _RATE_WIDTH, _RATIO_WIDTH = 24, 12, 18


@dataclass(frozen=True)
class Scrape:
    """Cost of one exposition of the ledger on the host."""

    series: int
    milliseconds: float


@dataclass(frozen=True)
class Ratio:
    """Speed of a contender relative to `of`: the median over rounds, and the quartiles around it."""

    of: str
    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


@dataclass(frozen=True)
class Row:
    """One contender: operations (or pages) a second, and ratios to the references before it."""

    contender: str
    completed: int
    rate: float
    ratios: tuple[Ratio, ...]


@dataclass(frozen=True)
class Bench:
    """All measurements of one benchmark."""

    kernel: str
    series: Sequence[Series]
    scrape: Scrape
    mirrored: bool


def rows(series: Series) -> Iterator[Row]:
    """Yield a row for each contender, with ratios to the references before it."""
    names = list(series.nanoseconds)
    for position, name in enumerate(names):
        taken = series.nanoseconds[name]
        ratios = tuple(
            _ratio(reference, series.nanoseconds[reference], taken)
            for reference in series.references
            if names.index(reference) < position
        )
        rate = series.operations * _NANOSECONDS / statistics.median(taken)
        yield Row(name, series.completed[name], rate, ratios)


def _ratio(reference: str, reference_ns: Sequence[int], taken_ns: Sequence[int]) -> Ratio:
    """Compare turns of the same round only, so that drift between rounds cancels out."""
    ratios = [base / taken for base, taken in zip(reference_ns, taken_ns, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(reference, median, low, high)


def text_report(bench: Bench) -> str:
    """Return the report as text, with one table for each subject."""
    lines = [f"Linux {bench.kernel}; ratios of speed: median over rounds (middle half of them)"]
    if bench.mirrored:
        lines.append("The ledger is on tmpfs, because memory shared with the host is slow here.")
    for series in bench.series:
        lines += ["", f"{series.subject}: {series.rounds} rounds of {series.operations:,}"]
        heads = [f"of {reference}" for reference in series.references]
        lines.append(_line(("", "a second", *heads)))
        for row in rows(series):
            by_name = {ratio.of: str(ratio) for ratio in row.ratios}
            shown = [by_name.get(reference, "") for reference in series.references]
            lines.append(_line((row.contender, f"{row.rate:,.0f}", *shown)))
    scrape = bench.scrape
    lines += ["", f"a scrape: {scrape.series:,} series in {scrape.milliseconds:.1f} ms on the host"]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _line(columns: Sequence[str]) -> str:
    name, rate, *ratios = columns
    return f"  {name:<{_NAME_WIDTH}}{rate:>{_RATE_WIDTH}}" + "".join(
        f"  {ratio:>{_RATIO_WIDTH}}" for ratio in ratios
    )


def json_report(bench: Bench) -> str:
    """Return the report as JSON."""
    report = {
        "kernel": bench.kernel,
        "mirrored": bench.mirrored,
        "subjects": [
            {
                "subject": series.subject,
                "rounds": series.rounds,
                "operations": series.operations,
                "contenders": [asdict(row) for row in rows(series)],
            }
            for series in bench.series
        ],
        "scrape": asdict(bench.scrape),
    }
    return json.dumps(report, indent=2) + "\n"
