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
        "The run that the ledger belongs to.",
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
        "1 while the soak is preparing, running or paused and its supervisor's heart beats.",
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
    Metric(
        "operations_total",
        MetricType.COUNTER,
        "Operations that have ended, by the way in which they ended.",
        (*_CELL, "outcome"),
    ),
    Metric(
        "operation_duration_seconds",
        MetricType.HISTOGRAM,
        "How long operations took, whatever their outcome.",
        _CELL,
        unit=_SECONDS,
    ),
    Metric(
        "operations_in_flight",
        MetricType.GAUGE,
        "Operations that have been started and have not ended.",
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
    Metric(
        "mapped_bytes",
        MetricType.GAUGE,
        "Memory whose pin was granted and has not been given back.",
        ("region", "interface"),
        unit=_BYTES,
    ),
    Metric(
        "pin_refusals_total",
        MetricType.COUNTER,
        "Pins that the kernel refused, by errno and by whether the expectation names that errno.",
        ("region", "interface", "errno", "expected"),
    ),
    Metric(
        "unexpected_pins_total",
        MetricType.COUNTER,
        "Pins that the kernel granted and owed a refusal.",
        ("region", "interface"),
    ),
    Metric(
        "foll_pins_acquired_total",
        MetricType.COUNTER,
        "The kernel's count of long-term page pins taken, system-wide.",
    ),
    Metric(
        "foll_pins_released_total",
        MetricType.COUNTER,
        "The kernel's count of long-term page pins given back, system-wide.",
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
        "Operations that slept on for too long after the last pin they waited for was given back.",
        _WAIT,
    ),
    Metric(
        "stall_seconds_total",
        MetricType.COUNTER,
        "Time that operations spent stalled; it grows while a stall lasts.",
        _WAIT,
        unit=_SECONDS,
    ),
    Metric("stalled_operations", MetricType.GAUGE, "Operations that are stalled now.", _WAIT),
    Metric(
        "wakeup_delay_seconds",
        MetricType.HISTOGRAM,
        "From the release of the last pin to the end of the operation that waited for it.",
        ("region", "interface"),
        unit=_SECONDS,
    ),
    # Page references.
    Metric(
        "leaked_page_references",
        MetricType.GAUGE,
        "Pinned pages whose reference is not given back, as the last sweep saw them.",
        _ISSUE,
    ),
    Metric(
        "page_references_leaked_total",
        MetricType.COUNTER,
        "Leaked page references ever found, those included that a recycled region has lost again.",
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
        "The share of the reference count that is left before it saturates, on the worst page.",
        ("region",),
        unit="ratio",
    ),
    Metric("pages_swept_total", MetricType.COUNTER, "Pages whose reference count was read.", ("region",)),
    Metric(
        "page_sweep_duration_seconds",
        MetricType.GAUGE,
        "How long the last sweep took.",
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
        "Combinations of operation, region and interface that have had the attempts they require.",
    ),
    Metric(
        "coverage_cells_required",
        MetricType.GAUGE,
        "Combinations of operation, region and interface that the run has promised to cover.",
    ),
    # The harness itself.
    Metric(
        "workers",
        MetricType.GAUGE,
        "Workers by what they do and the state that they are in.",
        ("role", "state"),
    ),
    Metric("worker_restarts_total", MetricType.COUNTER, "Workers that were replaced.", ("role",)),
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
        "How long the detector's last run took.",
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
        "1 while the probe for the known issue was inconclusive: it is tried again; 0 otherwise.",
        ("known_issue",),
    ),
    Metric(
        "canaries_total",
        MetricType.COUNTER,
        "Faults that the soak made itself, by whether the detector saw them.",
        ("detector", "result"),
    ),
    Metric(
        "last_canary_timestamp_seconds",
        MetricType.GAUGE,
        "When the detector last saw a fault that the soak made itself, since the epoch; 0 if never.",
        ("detector",),
        unit=_SECONDS,
    ),
    Metric(
        "journal_write_errors_total",
        MetricType.COUNTER,
        "Lines that could not be written to the journal.",
    ),
    Metric(
        "job_lateness_seconds",
        MetricType.GAUGE,
        "How late a scheduled job was when it last started.",
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
