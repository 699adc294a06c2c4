# SPDX-License-Identifier: GPL-2.0-only
"""Text tables of expectations, known issues, faults and scenarios."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, Final, Protocol

from soak.model.known_issues import KNOWN_ISSUES
from soak.model.vocabulary import errno_name
from soak.workload.expectations import EXPECTATIONS
from soak.workload.scenarios import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from soak.workload.pins.methods import Method

_WIDTH: Final = 79
_INDENT: Final = "    "


def expectations_table() -> str:
    """Return all expectations with their reasons."""
    lines: list[str] = []
    for row in EXPECTATIONS:
        outcome = "done" if row.refusal is None else errno_name(row.refusal)
        if row.waits:
            outcome += ", after the release of the pin"
        lines += _wrapped(", ".join(row.operations), "")
        place = f"{row.region} ({row.backing}) over {row.interface}"
        lines += _wrapped(f"{place}, {row.kernels}: {outcome}", _INDENT)
        lines += _wrapped(row.reason, _INDENT)
    return "\n".join(lines) + "\n"


def known_issues_table() -> str:
    """Return all known issues with scope, prediction and reference."""
    lines: list[str] = []
    for issue in KNOWN_ISSUES:
        lines += [
            issue.name,
            f"{_INDENT}{', '.join(issue.violations)}: {issue.region}, {', '.join(issue.interfaces)}",
            *_wrapped(f"by {', '.join(issue.operations)}", _INDENT),
            f"{_INDENT}{issue.kernels}",
            *_wrapped(f"predicts: {issue.prediction}", _INDENT),
            *_wrapped(f"see: {issue.reference}", _INDENT),
        ]
    return "\n".join(lines) + "\n"


class Described(Protocol):
    """The printed properties of a fault."""

    @property
    def name(self) -> str: ...
    @property
    def does(self) -> str: ...
    @property
    def shows_as(self) -> str: ...


def faults_table(faults: Iterable[Described]) -> str:
    """Return the faults that a lab can plant."""
    rows = [f"{fault.name:<16} {fault.does} ({fault.shows_as})" for fault in faults]
    lines = [line for row in rows for line in _wrapped(row, "", " " * 17)]
    return "\n".join(lines) + "\n"


def scenarios_table() -> str:
    """Return all scenarios with their weights."""
    lines: list[str] = []
    for scenario in SCENARIOS.values():
        lines += [
            scenario.name,
            *_wrapped(f"regions to map: {_weights(scenario.map_regions)}", _INDENT),
            *_wrapped(f"sizes to map: {_weights(scenario.map_sizes)}", _INDENT),
            *_wrapped(f"invalidations: {_weights(scenario.invalidations)}", _INDENT),
            *_wrapped(f"short pins: {_weights(_by_name(scenario.holds))}", _INDENT),
        ]
    return "\n".join(lines) + "\n"


def _by_name(holds: Mapping[Method, float]) -> dict[str, float]:
    return {f"{method.interface} ({method.name})": weight for method, weight in holds.items()}


def _weights(mix: Mapping[Any, float]) -> str:
    return ", ".join(f"{name} {weight:g}" for name, weight in mix.items())


def _wrapped(text: str, first: str, rest: str | None = None) -> Iterator[str]:
    yield from textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=first if rest is None else rest,
        break_on_hyphens=False,
    )
