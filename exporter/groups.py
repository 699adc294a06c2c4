# SPDX-License-Identifier: GPL-2.0-only
"""Computes the metric families from a ledger, in groups that fail independently."""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import TYPE_CHECKING, Final

from exporter.catalogue import ZERO_ERRNOS
from exporter.families import histogram, info, plain, single
from soak.ledger.layout import LedgerError
from soak.ledger.view import NANOSECONDS
from soak.ledger.worker_view import outcome_and_errno
from soak.model.vocabulary import (
    SHORT_PINS,
    Interface,
    Operation,
    Outcome,
    ProbeResult,
    RegionKind,
    Role,
    VerdictWord,
    WorkerState,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client import Metric

    from soak.ledger.histogram import Histogram
    from soak.ledger.view import LedgerView

_PAGE: Final = 4096
_PARTS_PER_MILLION: Final = 1_000_000
# The metric for each kind of count in a region's leaks.
_LEAKS: Final = {
    "leaked": "leaked_page_references",
    "leaked_total": "page_references_leaked_total",
    "predicted": "predicted_leaked_page_references",
}
_RUN_LABELS: Final = ("run_id", "scenario", "seed", "filesystem")
_PINNING: Final = frozenset({Operation.MAP})
# The kernel must grant every short pin, so an unexpected pin is always a long-term one.
_NEVER_UNEXPECTED: Final = frozenset({*SHORT_PINS, Interface.NONE})
_EXPECTED: Final = {Outcome.REFUSED: "true", Outcome.FAILED: "false"}


def _run(view: LedgerView) -> Iterator[Metric]:
    run_id, scenario, seed, filesystem = (view.run.get(label) for label in _RUN_LABELS)
    kernel_release = view.supervisor.text("kernel_release")
    accelerator = view.host.text("accelerator") if view.host else None
    yield info("run_info", [(run_id, kernel_release, scenario, seed, accelerator, filesystem)])
    yield info("region_info", [(area.kind, area.name, area.size) for area in view.regions])
    started = view.supervisor.get("first_start_realtime_ns") / NANOSECONDS
    yield single("run_start_timestamp_seconds", started)
    yield single("ledger_update_timestamp_seconds", view.beat_ns / NANOSECONDS)
    yield single("boots_total", view.boots)
    verdict = view.verdict
    yield plain("verdict", {(word,): int(word == verdict) for word in VerdictWord})


def _activity(view: LedgerView) -> Iterator[Metric]:
    yield single("run_active", int(view.active))


def _operations(view: LedgerView) -> Iterator[Metric]:
    ended: Counter[tuple[str, ...]] = Counter()
    refusals: Counter[tuple[str, ...]] = Counter()
    for cell, columns in view.counts.items():
        for column, count in columns.items():
            outcome, errno = outcome_and_errno(column)
            ended[cell.operation, cell.region, cell.interface, outcome] += count
            if cell.operation in _PINNING and errno and (count or errno in ZERO_ERRNOS):
                refusals[cell.region, cell.interface, errno, _EXPECTED[outcome]] += count
    yield plain("operations_total", ended)
    yield plain("pin_refusals_total", refusals)


def _durations(view: LedgerView) -> Iterator[Metric]:
    durations: dict[tuple[str, ...], Histogram] = {
        (cell.operation, cell.region, cell.interface): found for cell, found in view.durations.items()
    }
    yield histogram("operation_duration_seconds", view.bucket_bounds_ns, durations)


def _in_flight(view: LedgerView) -> Iterator[Metric]:
    starts: dict[tuple[str, ...], list[int]] = {(cell.operation, cell.region): [] for cell in view.cells}
    for flight in view.in_flight.values():
        starts[flight.cell.operation, flight.cell.region].append(flight.start_ns)
    yield plain("operations_in_flight", {key: len(found) for key, found in starts.items()})
    yield plain(
        "oldest_operation_start_timestamp_seconds",
        {key: view.epoch_seconds(min(found, default=0)) for key, found in starts.items()},
    )


def _pins(view: LedgerView) -> Iterator[Metric]:
    yield plain(
        "mapped_bytes",
        {
            (kind, pinning): sum(values) * _PAGE
            for pinning, pages in view.mapped_pages.items()
            for kind, values in _by_kind(view, pages).items()
        },
    )
    unexpected: Counter[tuple[str, ...]] = Counter()
    granted = view.supervisor.named_rows("unexpected_pins")
    for kind in dict.fromkeys(region.kind for region in view.regions):
        for interface, count in granted[kind].items():
            if count or interface not in _NEVER_UNEXPECTED:
                unexpected[kind, interface] += count
    yield plain("unexpected_pins_total", unexpected)


def _stalls(view: LedgerView) -> Iterator[Metric]:
    # Only fs-dax files have blocks to free, so only operations on them wait for pins.
    waits = {
        (operation, RegionKind.FS_DAX): row
        for operation, row in view.supervisor.named_rows("waits").items()
    }
    yield plain("stalls_total", {cell: row["stalls"] for cell, row in waits.items()})
    yield plain(
        "stall_seconds_total", {cell: row["stalled_ns"] / NANOSECONDS for cell, row in waits.items()}
    )
    yield plain("stalled_operations", {cell: row["stalled"] for cell, row in waits.items()})


def _wakeups(view: LedgerView) -> Iterator[Metric]:
    delays: dict[tuple[str, ...], Histogram] = {
        (RegionKind.FS_DAX, interface): found for interface, found in view.wakeup_delays.items()
    }
    yield histogram("wakeup_delay_seconds", view.bucket_bounds_ns, delays)


def _accounting(view: LedgerView) -> Iterator[Metric]:
    for name, field in (
        ("foll_pins_acquired_total", "foll_pins_acquired"),
        ("foll_pins_released_total", "foll_pins_released"),
        ("locked_memory_bytes", "locked_bytes"),
        ("foll_pinned_memory_bytes", "pinned_bytes"),
        ("kernel_tainted", "tainted"),
        ("coverage_cells", "coverage_cells"),
        ("coverage_cells_required", "coverage_cells_required"),
    ):
        yield single(name, view.supervisor.get(field))


def _leaks(view: LedgerView) -> Iterator[Metric]:
    references: dict[str, Counter[tuple[str, ...]]] = {kind: Counter() for kind in _LEAKS}
    for region in view.regions:
        leaks = view.leaks[region.name]
        if leaks is None:
            raise LedgerError(f"its writer stopped while it wrote the leaks of {region.name!r}")
        for kind, issues in leaks.items():
            for issue, count in issues.items():
                references[kind][region.kind, issue] += count
    for kind, name in _LEAKS.items():
        yield plain(name, references[kind])


def _headroom_ratio(_: LedgerView, values: list[int]) -> float:
    return min(values) / _PARTS_PER_MILLION


def _total(_: LedgerView, values: list[int]) -> float:
    return sum(values)


def _total_seconds(_: LedgerView, values: list[int]) -> float:
    return sum(values) / NANOSECONDS


def _oldest_timestamp(view: LedgerView, values: list[int]) -> float:
    return view.epoch_seconds(min(filter(None, values), default=0))


def _by_kind(view: LedgerView, values: Mapping[str, int]) -> dict[RegionKind, list[int]]:
    """Group values by region name into lists by kind of region."""
    sorted_values: dict[RegionKind, list[int]] = {region.kind: [] for region in view.regions}
    for region in view.regions:
        sorted_values[region.kind].append(values[region.name])
    return sorted_values


# The function that combines a field of several regions into one value for their kind.
_SWEEPS: Final[tuple[tuple[str, str, Callable[[LedgerView, list[int]], float]], ...]] = (
    ("page_reference_headroom_ratio", "headroom_ppm", _headroom_ratio),
    ("pages_swept_total", "swept_pages", _total),
    ("page_sweep_duration_seconds", "sweep_duration_ns", _total_seconds),
    ("last_page_sweep_timestamp_seconds", "last_sweep_ns", _oldest_timestamp),
)


def _sweeps(view: LedgerView) -> Iterator[Metric]:
    for name, field, combine in _SWEEPS:
        kinds = _by_kind(view, view.supervisor.named(field))
        yield plain(name, {(kind,): combine(view, values) for kind, values in kinds.items()})


def _violations(view: LedgerView) -> Iterator[Metric]:
    counts: dict[tuple[str, ...], int] = {
        (kind, issue): count
        for kind, issues in view.violations.items()
        for issue, count in issues.items()
    }
    yield plain("violations_total", counts)


def _workers(view: LedgerView) -> Iterator[Metric]:
    states: Counter[tuple[str, ...]] = Counter(dict.fromkeys(product(Role, WorkerState), 0))
    restarts: Counter[tuple[str, ...]] = Counter(dict.fromkeys(product(Role), 0))
    wedged: Counter[tuple[str, ...]] = Counter(dict.fromkeys(product(Role), 0))
    for worker in view.workers:
        states[worker.role, worker.state] += 1
        restarts[worker.role,] += worker.restarts
        wedged[worker.role,] += int(worker.wedged > 0)
    yield plain("workers", states)
    yield plain("worker_restarts_total", restarts)
    yield plain("wedged_workers", wedged)


def _harness(view: LedgerView) -> Iterator[Metric]:
    detectors = view.supervisor.named_rows("detectors")
    yield plain("detector_success", {(name,): int(row["success"] > 0) for name, row in detectors.items()})
    yield plain(
        "detector_duration_seconds",
        {(name,): row["duration_ns"] / NANOSECONDS for name, row in detectors.items()},
    )
    probes = view.supervisor.named_rows("probes")
    yield plain(
        "known_issue_confirmed",
        {
            (name,): row[ProbeResult.CONFIRMED]
            for name, row in probes.items()
            if row[ProbeResult.CONFIRMED] or row[ProbeResult.REFUTED]
        },
    )
    yield plain(
        "known_issue_probe_inconclusive",
        {(name,): row[ProbeResult.INCONCLUSIVE] for name, row in probes.items()},
    )
    canaries = view.supervisor.named_rows("canaries")
    yield plain(
        "canaries_total",
        {(name, result): row[result] for name, row in canaries.items() for result in ("seen", "missed")},
    )
    yield plain(
        "last_canary_timestamp_seconds",
        {(name,): view.epoch_seconds(row["seen_ns"]) for name, row in canaries.items()},
    )
    jobs = view.supervisor.named_rows("jobs")
    yield plain(
        "job_lateness_seconds", {(name,): row["lateness_ns"] / NANOSECONDS for name, row in jobs.items()}
    )
    yield single("journal_write_errors_total", view.journal_errors)


# Groups by their name in the log.
GROUPS: Final[Mapping[str, Callable[[LedgerView], Iterator[Metric]]]] = {
    "the run": _run,
    "activity of the run": _activity,
    "operations": _operations,
    "durations": _durations,
    "operations in flight": _in_flight,
    "pins": _pins,
    "stalls": _stalls,
    "wake-up delays": _wakeups,
    "accounting": _accounting,
    "leaks": _leaks,
    "sweeps": _sweeps,
    "violations": _violations,
    "workers": _workers,
    "the harness": _harness,
}
