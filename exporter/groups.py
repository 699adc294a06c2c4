# SPDX-License-Identifier: GPL-2.0-only
"""The metric families that a snapshot of a ledger fills, in groups that can fail one by one."""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import TYPE_CHECKING, Final

from exporter.catalogue import ZERO_ERRNOS
from exporter.families import histogram, info, plain, single
from exporter.snapshot import NANOSECONDS
from soak.ledger.schema import NO_KNOWN_ISSUE, leaks_field
from soak.model.vocabulary import (
    SHORT_PINS,
    Interface,
    Operation,
    Outcome,
    ProbeResult,
    RegionKind,
    Role,
    VerdictWord,
    Violation,
    WorkerState,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from prometheus_client import Metric

    from exporter.snapshot import Snapshot

_PAGE: Final = 4096
_PARTS_PER_MILLION: Final = 1_000_000
# The metric of each kind of column in a region's leaks.
_LEAKS: Final = {
    "leaked": "leaked_page_references",
    "leaked_total": "page_references_leaked_total",
    "predicted": "predicted_leaked_page_references",
}
_RUN_LABELS: Final = ("run_id", "scenario", "seed", "filesystem")
_PINNING: Final = frozenset({Operation.MAP})
# Every short pin is owed to its owner: what is granted against a promise is held for the long term.
_NEVER_UNEXPECTED: Final = frozenset({*SHORT_PINS, Interface.NONE})
_EXPECTED: Final = {Outcome.REFUSED: "true", Outcome.FAILED: "false"}


def _run(snapshot: Snapshot) -> Iterator[Metric]:
    supervisor, host = snapshot.supervisor, snapshot.host
    run_id, scenario, seed, filesystem = (snapshot.run.get(label) for label in _RUN_LABELS)
    kernel_release = supervisor.text("kernel_release")
    accelerator = host.text("accelerator") if host else None
    yield info("run_info", [(run_id, kernel_release, scenario, seed, accelerator, filesystem)])
    yield info("region_info", [(area.kind, area.name, area.size) for area in snapshot.regions])
    started = supervisor.get("first_start_realtime_ns") / NANOSECONDS
    yield single("run_start_timestamp_seconds", started)
    yield single("ledger_update_timestamp_seconds", snapshot.beat_ns / NANOSECONDS)
    yield single("boots_total", (host or supervisor).get("boots"))
    verdict = snapshot.verdict
    yield plain("verdict", {(word,): int(word == verdict) for word in VerdictWord})


def _activity(snapshot: Snapshot) -> Iterator[Metric]:
    yield single("run_active", int(snapshot.active))


def _operations(snapshot: Snapshot) -> Iterator[Metric]:
    ended: Counter[tuple[str, ...]] = Counter()
    refusals: Counter[tuple[str, ...]] = Counter()
    for worker in snapshot.workers:
        counts = worker.block.named_rows("counts").values()
        for cell, columns in zip(worker.cells, counts, strict=True):
            for column, count in columns.items():
                outcome, _, errno = column.partition(" ")
                ended[cell.operation, cell.region, cell.interface, Outcome(outcome)] += count
                if cell.operation in _PINNING and errno and (count or errno in ZERO_ERRNOS):
                    expected = _EXPECTED[Outcome(outcome)]
                    refusals[cell.region, cell.interface, errno, expected] += count
    yield plain("operations_total", ended)
    yield plain("pin_refusals_total", refusals)


def _durations(snapshot: Snapshot) -> Iterator[Metric]:
    width = len(snapshot.bucket_bounds_ns) + 1
    buckets = {cell: [0] * width for cell in snapshot.cells}
    sums_ns = dict.fromkeys(snapshot.cells, 0)
    for worker in snapshot.workers:
        block = worker.block
        rows = zip(
            worker.cells, block.rows("duration_buckets"), block.flat("duration_sum_ns"), strict=True
        )
        for cell, row, sum_ns in rows:
            buckets[cell] = [a + b for a, b in zip(buckets[cell], row, strict=True)]
            sums_ns[cell] += sum_ns
    rows_by_cell: dict[tuple[str, ...], tuple[Sequence[int], int]] = {
        (cell.operation, cell.region, cell.interface): (buckets[cell], sums_ns[cell])
        for cell in snapshot.cells
    }
    yield histogram("operation_duration_seconds", snapshot.bucket_bounds_ns, rows_by_cell)


def _in_flight(snapshot: Snapshot) -> Iterator[Metric]:
    starts: dict[tuple[str, ...], list[int]] = {
        (cell.operation, cell.region): [] for cell in snapshot.cells
    }
    for worker in snapshot.workers:
        if flight := worker.in_flight:
            starts[flight.cell.operation, flight.cell.region].append(flight.start_ns)
    yield plain("operations_in_flight", {key: len(found) for key, found in starts.items()})
    yield plain(
        "oldest_operation_start_timestamp_seconds",
        {key: snapshot.epoch_seconds(min(found, default=0)) for key, found in starts.items()},
    )


def _pins(snapshot: Snapshot) -> Iterator[Metric]:
    held: dict[Interface, Counter[str]] = {}
    for worker in snapshot.workers:
        for pinning in {cell.interface for cell in worker.cells if cell.operation in _PINNING}:
            pages = held.setdefault(pinning, Counter())
            pages.update(worker.block.named("pages_mapped"))
            pages.subtract(worker.block.named("pages_unmapped"))
    yield plain(
        "mapped_bytes",
        {
            (kind, pinning): sum(values) * _PAGE
            for pinning, counts in held.items()
            for kind, values in snapshot.by_kind(counts).items()
        },
    )
    unexpected: Counter[tuple[str, ...]] = Counter()
    granted = snapshot.supervisor.named_rows("unexpected_pins")
    for kind in dict.fromkeys(region.kind for region in snapshot.regions):
        for interface, count in granted[kind].items():
            if count or interface not in _NEVER_UNEXPECTED:
                unexpected[kind, interface] += count
    yield plain("unexpected_pins_total", unexpected)


def _stalls(snapshot: Snapshot) -> Iterator[Metric]:
    # Only files have blocks to take away: what waits for pins is always fs-dax.
    waits = {
        (operation, RegionKind.FS_DAX): row
        for operation, row in snapshot.supervisor.named_rows("waits").items()
    }
    yield plain("stalls_total", {cell: row["stalls"] for cell, row in waits.items()})
    yield plain(
        "stall_seconds_total", {cell: row["stalled_ns"] / NANOSECONDS for cell, row in waits.items()}
    )
    yield plain("stalled_operations", {cell: row["stalled"] for cell, row in waits.items()})


def _wakeups(snapshot: Snapshot) -> Iterator[Metric]:
    sums_ns = snapshot.supervisor.named("wakeup_delay_sum_ns")
    buckets = snapshot.supervisor.rows("wakeup_delay_buckets")
    delays: dict[tuple[str, ...], tuple[Sequence[int], int]] = {
        (RegionKind.FS_DAX, interface): (row, sum_ns)
        for (interface, sum_ns), row in zip(sums_ns.items(), buckets, strict=True)
    }
    yield histogram("wakeup_delay_seconds", snapshot.bucket_bounds_ns, delays)


def _accounting(snapshot: Snapshot) -> Iterator[Metric]:
    for name, field in (
        ("foll_pins_acquired_total", "foll_pins_acquired"),
        ("foll_pins_released_total", "foll_pins_released"),
        ("locked_memory_bytes", "locked_bytes"),
        ("foll_pinned_memory_bytes", "pinned_bytes"),
        ("kernel_tainted", "tainted"),
        ("coverage_cells", "coverage_cells"),
        ("coverage_cells_required", "coverage_cells_required"),
    ):
        yield single(name, snapshot.supervisor.get(field))


def _leaks(snapshot: Snapshot) -> Iterator[Metric]:
    references: dict[str, Counter[tuple[str, ...]]] = {kind: Counter() for kind in _LEAKS}
    for region in snapshot.regions:
        for column, count in snapshot.group(leaks_field(region.name)).items():
            kind, _, issue = column.partition(" ")
            references[kind][region.kind, issue] += count
    for kind, name in _LEAKS.items():
        yield plain(name, references[kind])


def _headroom_ratio(_: Snapshot, values: list[int]) -> float:
    return min(values) / _PARTS_PER_MILLION


def _total(_: Snapshot, values: list[int]) -> float:
    return sum(values)


def _total_seconds(_: Snapshot, values: list[int]) -> float:
    return sum(values) / NANOSECONDS


def _oldest_timestamp(snapshot: Snapshot, values: list[int]) -> float:
    return snapshot.epoch_seconds(min(filter(None, values), default=0))


# How the fields of several regions become one value for their kind.
_SWEEPS: Final[tuple[tuple[str, str, Callable[[Snapshot, list[int]], float]], ...]] = (
    ("page_reference_headroom_ratio", "headroom_ppm", _headroom_ratio),
    ("pages_swept_total", "swept_pages", _total),
    ("page_sweep_duration_seconds", "sweep_duration_ns", _total_seconds),
    ("last_page_sweep_timestamp_seconds", "last_sweep_ns", _oldest_timestamp),
)


def _sweeps(snapshot: Snapshot) -> Iterator[Metric]:
    for name, field, combine in _SWEEPS:
        kinds = snapshot.by_kind(snapshot.supervisor.named(field))
        yield plain(name, {(kind,): combine(snapshot, values) for kind, values in kinds.items()})


def _violations(snapshot: Snapshot) -> Iterator[Metric]:
    counts: dict[tuple[str, ...], int] = {
        (kind, issue): count
        for kind, issues in snapshot.supervisor.named_rows("violations").items()
        for issue, count in issues.items()
    }
    if snapshot.host:  # which alone can count the deaths of the machine that the supervisor runs on
        counts[Violation.LOST_MACHINE, NO_KNOWN_ISSUE] += snapshot.host.get("lost_machines")
    yield plain("violations_total", counts)


def _workers(snapshot: Snapshot) -> Iterator[Metric]:
    states: Counter[tuple[str, ...]] = Counter(dict.fromkeys(product(Role, WorkerState), 0))
    restarts: Counter[tuple[str, ...]] = Counter(dict.fromkeys(product(Role), 0))
    wedged: Counter[tuple[str, ...]] = Counter(dict.fromkeys(product(Role), 0))
    restarted, hanging = (snapshot.supervisor.named(field) for field in ("restarts", "wedged"))
    for worker in snapshot.workers:
        role = Role(worker.role)
        states[role, WorkerState(worker.state)] += 1
        restarts[role,] += restarted[worker.name]
        wedged[role,] += int(hanging[worker.name] > 0)
    yield plain("workers", states)
    yield plain("worker_restarts_total", restarts)
    yield plain("wedged_workers", wedged)


def _harness(snapshot: Snapshot) -> Iterator[Metric]:
    detectors = snapshot.supervisor.named_rows("detectors")
    yield plain("detector_success", {(name,): int(row["success"] > 0) for name, row in detectors.items()})
    yield plain(
        "detector_duration_seconds",
        {(name,): row["duration_ns"] / NANOSECONDS for name, row in detectors.items()},
    )
    probes = snapshot.supervisor.named_rows("probes")
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
    canaries = snapshot.supervisor.named_rows("canaries")
    yield plain(
        "canaries_total",
        {(name, result): row[result] for name, row in canaries.items() for result in ("seen", "missed")},
    )
    yield plain(
        "last_canary_timestamp_seconds",
        {(name,): snapshot.epoch_seconds(row["seen_ns"]) for name, row in canaries.items()},
    )
    jobs = snapshot.supervisor.named_rows("jobs")
    yield plain(
        "job_lateness_seconds", {(name,): row["lateness_ns"] / NANOSECONDS for name, row in jobs.items()}
    )
    writers = [snapshot.supervisor] if snapshot.host is None else [snapshot.supervisor, snapshot.host]
    yield single("journal_write_errors_total", sum(writer.get("journal_errors") for writer in writers))


# Each group stands or falls by itself, under the name that the log gives it.
GROUPS: Final[Mapping[str, Callable[[Snapshot], Iterator[Metric]]]] = {
    "the run": _run,
    "whether the run is active": _activity,
    "operations": _operations,
    "durations": _durations,
    "operations in flight": _in_flight,
    "pins": _pins,
    "stalls": _stalls,
    "delays of wake-ups": _wakeups,
    "accounting": _accounting,
    "leaks": _leaks,
    "sweeps": _sweeps,
    "violations": _violations,
    "workers": _workers,
    "the harness": _harness,
}
