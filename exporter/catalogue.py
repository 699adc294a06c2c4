# SPDX-License-Identifier: GPL-2.0-only
"""The catalogue: name, type, unit, labels and HELP text of every metric.

Documentation is generated from it; dashboards, rules and tests are checked against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

PREFIX: Final = "dax_soak_"


class MetricType(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    INFO = "info"


# The suffixes that Prometheus appends to the metric's name for its series.
_SAMPLE_SUFFIXES: Final = {
    MetricType.COUNTER: ("",),
    MetricType.GAUGE: ("",),
    MetricType.HISTOGRAM: ("_bucket", "_count", "_sum"),
    MetricType.INFO: ("",),
}


@dataclass(frozen=True)
class Metric:
    """One metric. `name` has no prefix; `unit` is the base unit at the end of the name."""

    name: str
    type: MetricType
    help: str
    labels: tuple[str, ...] = ()
    unit: str = ""

    @property
    def full_name(self) -> str:
        return PREFIX + self.name

    @property
    def sample_names(self) -> tuple[str, ...]:
        """The names of the metric's series in Prometheus."""
        return tuple(self.full_name + suffix for suffix in _SAMPLE_SUFFIXES[self.type])


_SECONDS: Final = "seconds"
_BYTES: Final = "bytes"
_CELL: Final = ("operation", "region", "interface")
_WAIT: Final = ("operation", "region")
_ISSUE: Final = ("region", "known_issue")

METRICS: Final = (
    # The exporter and the run.
    Metric(
        "build_info", MetricType.INFO, "Version and revision of the exporter.", ("version", "revision")
    ),
    Metric(
        "run_info",
        MetricType.INFO,
        "The run that the exporter serves.",
        ("run_id", "kernel_release", "scenario", "seed", "accelerator", "filesystem"),
    ),
    Metric(
        "region_info",
        MetricType.INFO,
        "Region under test: kind, name and size in bytes.",
        ("region", "name", "size"),
    ),
    Metric("up", MetricType.GAUGE, "1 if the exporter could read the whole ledger, 0 otherwise."),
    Metric(
        "run_active",
        MetricType.GAUGE,
        "1 while the run prepares, runs or is paused and its supervisor sends heartbeats; 0 otherwise.",
    ),
    Metric(
        "run_start_timestamp_seconds",
        MetricType.GAUGE,
        "First start of the supervisor, since the epoch; 0 before.",
        unit=_SECONDS,
    ),
    Metric(
        "ledger_update_timestamp_seconds",
        MetricType.GAUGE,
        "Last heartbeat of the supervisor, since the epoch; 0 before the first.",
        unit=_SECONDS,
    ),
    Metric("boots_total", MetricType.COUNTER, "Boots of the machine under test in this run."),
    Metric("verdict", MetricType.GAUGE, "1 for the current verdict, 0 for the others.", ("verdict",)),
    # The workers' operations.
    Metric("operations_total", MetricType.COUNTER, "Operations ended, by outcome.", (*_CELL, "outcome")),
    Metric(
        "operation_duration_seconds",
        MetricType.HISTOGRAM,
        "Duration of operations of all outcomes.",
        _CELL,
        unit=_SECONDS,
    ),
    Metric(
        "operations_in_flight", MetricType.GAUGE, "Operations in flight; 0 once the run is over.", _WAIT
    ),
    Metric(
        "oldest_operation_start_timestamp_seconds",
        MetricType.GAUGE,
        "Start of the oldest operation in flight, since the epoch; 0 if none is in flight.",
        _WAIT,
        unit=_SECONDS,
    ),
    # Pins.
    Metric(
        "mapped_bytes",
        MetricType.GAUGE,
        "Memory that the workers currently pin.",
        ("region", "interface"),
        unit=_BYTES,
    ),
    Metric(
        "pin_refusals_total",
        MetricType.COUNTER,
        "Pins refused, by errno and by whether the errno was expected.",
        ("region", "interface", "errno", "expected"),
    ),
    Metric(
        "unexpected_pins_total",
        MetricType.COUNTER,
        "Pins granted where a refusal was expected.",
        ("region", "interface"),
    ),
    Metric(
        "foll_pins_acquired_total",
        MetricType.COUNTER,
        "Page pins taken system-wide (nr_foll_pin_acquired).",
    ),
    Metric(
        "foll_pins_released_total",
        MetricType.COUNTER,
        "Page pins released system-wide (nr_foll_pin_released).",
    ),
    Metric("locked_memory_bytes", MetricType.GAUGE, "Locked memory of the workers (VmLck).", unit=_BYTES),
    Metric(
        "foll_pinned_memory_bytes", MetricType.GAUGE, "Pinned memory of the workers (VmPin).", unit=_BYTES
    ),
    # Waits for pins.
    Metric(
        "stalls_total",
        MetricType.COUNTER,
        "Operations that outlasted the release of the last pin by more than [stall] threshold.",
        _WAIT,
    ),
    Metric(
        "stall_seconds_total",
        MetricType.COUNTER,
        "Time spent in stalls, current ones included.",
        _WAIT,
        unit=_SECONDS,
    ),
    Metric("stalled_operations", MetricType.GAUGE, "Operations currently stalled.", _WAIT),
    Metric(
        "wakeup_delay_seconds",
        MetricType.HISTOGRAM,
        "Time from the release of the last pin to the end of the operation that waited for it.",
        ("region", "interface"),
        unit=_SECONDS,
    ),
    # Page references.
    Metric(
        "leaked_page_references",
        MetricType.GAUGE,
        "Leaked page references found by the last sweep.",
        _ISSUE,
    ),
    Metric(
        "page_references_leaked_total",
        MetricType.COUNTER,
        "Leaked page references found so far, those of recycled pages included.",
        _ISSUE,
    ),
    Metric(
        "predicted_leaked_page_references",
        MetricType.GAUGE,
        "Leaked page references that a known issue predicts.",
        _ISSUE,
    ),
    Metric(
        "page_reference_headroom_ratio",
        MetricType.GAUGE,
        "Share of the reference count left before saturation, on the fullest page.",
        ("region",),
        unit="ratio",
    ),
    Metric("pages_swept_total", MetricType.COUNTER, "Pages read by sweeps.", ("region",)),
    Metric(
        "page_sweep_duration_seconds",
        MetricType.GAUGE,
        "Duration of the last sweep.",
        ("region",),
        unit=_SECONDS,
    ),
    Metric(
        "last_page_sweep_timestamp_seconds",
        MetricType.GAUGE,
        "Last sweep of the least recently swept region, since the epoch; 0 before the first.",
        ("region",),
        unit=_SECONDS,
    ),
    # Findings.
    Metric("kernel_tainted", MetricType.GAUGE, "Taint mask of the kernel under test; 0 is untainted."),
    Metric(
        "violations_total",
        MetricType.COUNTER,
        "Broken expectations, by kind and by the known issue that explains them.",
        ("kind", "known_issue"),
    ),
    Metric(
        "coverage_cells",
        MetricType.GAUGE,
        "Cells (operation, region, interface) with the required number of attempts.",
    ),
    Metric(
        "coverage_cells_required",
        MetricType.GAUGE,
        "Cells (operation, region, interface) that the run must cover.",
    ),
    # The harness.
    Metric("workers", MetricType.GAUGE, "Workers by role and state.", ("role", "state")),
    Metric("worker_restarts_total", MetricType.COUNTER, "Workers replaced.", ("role",)),
    Metric(
        "wedged_workers",
        MetricType.GAUGE,
        "Workers that hang in the kernel and cannot be killed.",
        ("role",),
    ),
    Metric(
        "detector_success",
        MetricType.GAUGE,
        "1 if the detector's last run succeeded, 0 otherwise.",
        ("detector",),
    ),
    Metric(
        "detector_duration_seconds",
        MetricType.GAUGE,
        "Duration of the detector's last run.",
        ("detector",),
        unit=_SECONDS,
    ),
    Metric(
        "known_issue_confirmed",
        MetricType.GAUGE,
        "1 if the probe confirmed the known issue, 0 if it refuted it; absent before either.",
        ("known_issue",),
    ),
    Metric(
        "known_issue_probe_inconclusive",
        MetricType.GAUGE,
        "1 while the probe of the known issue is inconclusive and repeated, 0 otherwise.",
        ("known_issue",),
    ),
    Metric(
        "canaries_total",
        MetricType.COUNTER,
        "Canaries (injected faults), by whether the detector saw them.",
        ("detector", "result"),
    ),
    Metric(
        "last_canary_timestamp_seconds",
        MetricType.GAUGE,
        "Last canary that the detector saw, since the epoch; 0 before the first.",
        ("detector",),
        unit=_SECONDS,
    ),
    Metric("journal_write_errors_total", MetricType.COUNTER, "Journal lines that could not be written."),
    Metric(
        "job_lateness_seconds",
        MetricType.GAUGE,
        "Delay of the job's last start behind its schedule.",
        ("job",),
        unit=_SECONDS,
    ),
)

BY_NAME: Final = {metric.name: metric for metric in METRICS}

# Upper bounds of the exported buckets, in seconds: every second octave of the ledger's finer buckets.
# They include 0.5 s and 2 s, the defaults of [stall] late and threshold.
EXPOSED_BOUNDS: Final = tuple(2.0**exponent for exponent in range(-19, 8, 2))

# The errnos of refused pins that are exported from the start. The others are exported once they occur,
# which keeps a run well below 1,000 series.
ZERO_ERRNOS: Final = ("EOPNOTSUPP",)
