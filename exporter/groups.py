"""The metric families that a snapshot of a ledger fills, in groups that can fail one by one."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from itertools import accumulate, product
from typing import TYPE_CHECKING, Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)

from exporter.catalogue import BY_NAME, EXPOSED_BOUNDS, ZERO_ERRNOS, MetricType
from exporter.snapshot import NANOSECONDS
from soak.schema import NO_KNOWN_ISSUE, leaks_field
from soak.vocabulary import (
    Interface,
    Operation,
    Outcome,
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
_EXPECTED: Final = {Outcome.REFUSED: "true", Outcome.FAILED: "false"}
_PLAIN_FAMILIES: Final = {
    MetricType.COUNTER: CounterMetricFamily,
    MetricType.GAUGE: GaugeMetricFamily,
}


def plain(name: str, values: Mapping[tuple[str, ...], float]) -> Metric:
    """Build a counter or gauge from values by label values, in the catalogue's order."""
    metric = BY_NAME[name]
    family: CounterMetricFamily | GaugeMetricFamily = _PLAIN_FAMILIES[metric.type](
        metric.full_name, metric.help, labels=metric.labels, unit=metric.unit
    )
    for labels, value in values.items():
        family.add_metric(list(_labels(name, labels).values()), value)
    return family


def single(name: str, value: float) -> Metric:
    """Build a counter or gauge without labels."""
    return plain(name, {(): value})


def info(name: str, rows: Sequence[tuple[object, ...]]) -> Metric:
    """Build an info family of one series per row."""
    metric = BY_NAME[name]
    family = InfoMetricFamily(metric.full_name.removesuffix("_info"), metric.help)
    for row in rows:
        family.add_metric([], _labels(name, row))
    return family


def _labels(name: str, values: Sequence[object]) -> dict[str, str]:
    return dict(zip(BY_NAME[name].labels, map(_label, values), strict=True))


def _label(value: object) -> str:
    """Return text that any exposition format can carry; an empty label would be no label."""
    text = "" if value is None else str(value)
    return text.encode(errors="replace").decode() or "none"


def _run(snapshot: Snapshot) -> Iterator[Metric]:
    supervisor, host = snapshot.supervisor, snapshot.host
    run_id, scenario, seed, filesystem = (snapshot.run.get(label) for label in _RUN_LABELS)
    kernel_release = supervisor.text("kernel_release")
    accelerator = host.text("accelerator") if host else None
    yield info("run_info", [(run_id, kernel_release, scenario, seed, accelerator, filesystem)])
    yield info("region_info", [(area.kind, area.name, area.size) for area in snapshot.regions])
    started = supervisor.get("started_ns")
    yield single("run_start_timestamp_seconds", snapshot.epoch_seconds(started))
    heartbeat = snapshot.epoch_seconds(supervisor.get("heartbeat_ns"))
    yield single("ledger_update_timestamp_seconds", heartbeat)
    yield single("boots_total", host.get("boots") if host else int(started > 0))
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
    metric = BY_NAME["operation_duration_seconds"]
    family = HistogramMetricFamily(
        metric.full_name, metric.help, labels=metric.labels, unit=metric.unit
    )
    # How many of the ledger's buckets lie under each bound that is exposed.
    under = [
        (str(bound), bisect_right(snapshot.bucket_bounds_ns, bound * NANOSECONDS))
        for bound in EXPOSED_BOUNDS
    ]
    for cell in snapshot.cells:
        totals = [0, *accumulate(buckets[cell])]
        exposed = [*((bound, totals[number]) for bound, number in under), ("+Inf", totals[-1])]
        labels = [cell.operation, cell.region, cell.interface]
        family.add_metric(labels, exposed, sums_ns[cell] / NANOSECONDS)
    yield family


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
    pages: Counter[str] = Counter({region.name: 0 for region in snapshot.regions})
    for worker in snapshot.workers:
        pages.update(worker.block.named("pages_mapped"))
        pages.subtract(worker.block.named("pages_unmapped"))
    yield plain(
        "mapped_bytes",
        {
            (kind, Interface.VFIO_TYPE1): sum(values) * _PAGE
            for kind, values in snapshot.by_kind(pages).items()
        },
    )
    unexpected: Counter[tuple[str, ...]] = Counter()
    granted = snapshot.supervisor.named_rows("unexpected_pins")
    for kind in dict.fromkeys(region.kind for region in snapshot.regions):
        for interface, count in granted[kind].items():
            if interface != Interface.NONE:  # which pins nothing
                unexpected[kind, interface] += count
    yield plain("unexpected_pins_total", unexpected)


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
    yield plain(
        "detector_success", {(name,): int(row["success"] > 0) for name, row in detectors.items()}
    )
    yield plain(
        "detector_duration_seconds",
        {(name,): row["duration_ns"] / NANOSECONDS for name, row in detectors.items()},
    )
    jobs = snapshot.supervisor.named_rows("jobs")
    yield plain(
        "job_lateness_seconds",
        {(name,): row["lateness_ns"] / NANOSECONDS for name, row in jobs.items()},
    )
    writers = (
        [snapshot.supervisor] if snapshot.host is None else [snapshot.supervisor, snapshot.host]
    )
    yield single(
        "journal_write_errors_total", sum(writer.get("journal_errors") for writer in writers)
    )


# Each group stands or falls by itself, under the name that the log gives it.
GROUPS: Final[Mapping[str, Callable[[Snapshot], Iterator[Metric]]]] = {
    "the run": _run,
    "whether the run is active": _activity,
    "operations": _operations,
    "durations": _durations,
    "operations in flight": _in_flight,
    "pins": _pins,
    "accounting": _accounting,
    "leaks": _leaks,
    "sweeps": _sweeps,
    "violations": _violations,
    "workers": _workers,
    "the harness": _harness,
}
