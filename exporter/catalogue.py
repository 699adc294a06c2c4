# SPDX-License-Identifier: GPL-2.0-only
"""The catalogue: the one place where a metric is named, typed and explained.

Dashboards, rules, documentation and tests are generated from it or checked against it.
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


# What the names of its series end in, after the name of the metric.
_SAMPLE_SUFFIXES: Final = {
    MetricType.COUNTER: ("",),
    MetricType.GAUGE: ("",),
    MetricType.HISTOGRAM: ("_bucket", "_count", "_sum"),
    MetricType.INFO: ("",),
}


@dataclass(frozen=True)
class Metric:
    """One metric. `name` is without the prefix; `unit` is the base unit in which its name ends."""

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
        """The names of its series as Prometheus stores them."""
        return tuple(self.full_name + suffix for suffix in _SAMPLE_SUFFIXES[self.type])


_SECONDS: Final = "seconds"
_BYTES: Final = "bytes"
_CELL: Final = ("operation", "region", "interface")
_WAIT: Final = ("operation", "region")
_ISSUE: Final = ("region", "known_issue")

METRICS: Final = (
    # The exporter and the run.
    Metric(
        "build_info",
        MetricType.INFO,
        "The dax-soak program that serves these metrics.",
        ("version", "revision"),
    ),
    Metric(
        "run_info",
        MetricType.INFO,
        "The run whose ledger this is.",
        ("run_id", "kernel_release", "scenario", "seed", "accelerator", "filesystem"),
    ),
    Metric(
        "region_info",
        MetricType.INFO,
        "A region under test: its kind, its name and its size in bytes.",
        ("region", "name", "size"),
    ),
    Metric("up", MetricType.GAUGE, "1 if the whole ledger could be read, 0 otherwise."),
    Metric(
        "run_active",
        MetricType.GAUGE,
        "1 while the soak prepares, runs or pauses and its supervisor sends heartbeats; 0 otherwise.",
    ),
    Metric(
        "run_start_timestamp_seconds",
        MetricType.GAUGE,
        "When the supervisor started, since the epoch; 0 if it has not.",
        unit=_SECONDS,
    ),
    Metric(
        "ledger_update_timestamp_seconds",
        MetricType.GAUGE,
        "The supervisor's last heartbeat, since the epoch; 0 if there was none.",
        unit=_SECONDS,
    ),
    Metric("boots_total", MetricType.COUNTER, "How often the machine under test has booted in this run."),
    Metric(
        "verdict", MetricType.GAUGE, "1 for the verdict as it stands now, 0 for the others.", ("verdict",)
    ),
    # What the workers do.
    Metric("operations_total", MetricType.COUNTER, "Operations ended, by outcome.", (*_CELL, "outcome")),
    Metric(
        "operation_duration_seconds",
        MetricType.HISTOGRAM,
        "Duration of operations of every outcome.",
        _CELL,
        unit=_SECONDS,
    ),
    Metric(
        "operations_in_flight",
        MetricType.GAUGE,
        "Operations started and not ended; 0 where the run is over.",
        _WAIT,
    ),
    Metric(
        "oldest_operation_start_timestamp_seconds",
        MetricType.GAUGE,
        "When the oldest operation in flight was started, since the epoch; 0 while there is none.",
        _WAIT,
        unit=_SECONDS,
    ),
    # Pins.
    Metric("mapped_bytes", MetricType.GAUGE, "Memory pinned now.", ("region", "interface"), unit=_BYTES),
    Metric(
        "pin_refusals_total",
        MetricType.COUNTER,
        "Pins refused, by errno and by whether that errno was expected.",
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
        "Long-term page pins taken, as the kernel counts them system-wide.",
    ),
    Metric(
        "foll_pins_released_total",
        MetricType.COUNTER,
        "Long-term page pins released, as the kernel counts them system-wide.",
    ),
    Metric(
        "locked_memory_bytes",
        MetricType.GAUGE,
        "Memory that the kernel accounts as locked by the workers (VmLck).",
        unit=_BYTES,
    ),
    Metric(
        "foll_pinned_memory_bytes",
        MetricType.GAUGE,
        "Memory that the kernel accounts as pinned by the workers (VmPin).",
        unit=_BYTES,
    ),
    # What waits for pins.
    Metric(
        "stalls_total",
        MetricType.COUNTER,
        "Operations that still slept [stall] threshold after the last pin was released.",
        _WAIT,
    ),
    Metric(
        "stall_seconds_total",
        MetricType.COUNTER,
        "Time that operations spent stalled, current stalls included.",
        _WAIT,
        unit=_SECONDS,
    ),
    Metric("stalled_operations", MetricType.GAUGE, "Operations stalled now.", _WAIT),
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
        "Page references not released, as counted by the last sweep.",
        _ISSUE,
    ),
    Metric(
        "page_references_leaked_total",
        MetricType.COUNTER,
        "Page references not released, ever found, recycled regions included.",
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
        "Share of the reference count left before it saturates, on the worst page.",
        ("region",),
        unit="ratio",
    ),
    Metric("pages_swept_total", MetricType.COUNTER, "Pages whose reference count was read.", ("region",)),
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
        "When the region whose last sweep is oldest was swept, since the epoch; 0 if none was.",
        ("region",),
        unit=_SECONDS,
    ),
    # What was found.
    Metric("kernel_tainted", MetricType.GAUGE, "The taint mask of the kernel under test; 0 is clean."),
    Metric("violations_total", MetricType.COUNTER, "Broken expectations.", ("kind", "known_issue")),
    Metric(
        "coverage_cells",
        MetricType.GAUGE,
        "Combinations of operation, region and interface attempted as often as required.",
    ),
    Metric(
        "coverage_cells_required",
        MetricType.GAUGE,
        "Combinations of operation, region and interface that the run must cover.",
    ),
    # The harness itself.
    Metric("workers", MetricType.GAUGE, "Workers by role and state.", ("role", "state")),
    Metric("worker_restarts_total", MetricType.COUNTER, "Workers replaced.", ("role",)),
    Metric(
        "wedged_workers",
        MetricType.GAUGE,
        "Workers that hang in the kernel and cannot be freed.",
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
        "1 if the probe confirmed the known issue, 0 if it refuted it; absent until it did either.",
        ("known_issue",),
    ),
    Metric(
        "known_issue_probe_inconclusive",
        MetricType.GAUGE,
        "1 while the probe for the known issue is inconclusive and tried again; 0 otherwise.",
        ("known_issue",),
    ),
    Metric(
        "canaries_total",
        MetricType.COUNTER,
        "Canaries (faults that the soak plants itself), by whether the detector saw them.",
        ("detector", "result"),
    ),
    Metric(
        "last_canary_timestamp_seconds",
        MetricType.GAUGE,
        "When the detector last saw its canary, since the epoch; 0 if never.",
        ("detector",),
        unit=_SECONDS,
    ),
    Metric("journal_write_errors_total", MetricType.COUNTER, "Journal lines that could not be written."),
    Metric(
        "job_lateness_seconds",
        MetricType.GAUGE,
        "Delay of the last start of a scheduled job.",
        ("job",),
        unit=_SECONDS,
    ),
)

BY_NAME: Final = {metric.name: metric for metric in METRICS}

# Upper bounds of the buckets that are exposed, in seconds: every second octave of the ledger's
# finer ones, chosen so that 0.5 s and 2 s, the defaults of late and stalled, are among them.
EXPOSED_BOUNDS: Final = tuple(2.0**exponent for exponent in range(-19, 8, 2))

# The errnos of a refused pin that are exported before they have occurred; the others join when
# they do, so that a run stays well under its 1,000 series.
ZERO_ERRNOS: Final = ("EOPNOTSUPP",)
