# SPDX-License-Identifier: GPL-2.0-only
"""Builds metric families from values by label values, according to the catalogue."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)

from exporter.catalogue import BY_NAME, EXPOSED_BOUNDS, MetricType
from soak.ledger.view import NANOSECONDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prometheus_client import Metric

    from soak.ledger.histogram import Histogram

_PLAIN_FAMILIES: Final = {MetricType.COUNTER: CounterMetricFamily, MetricType.GAUGE: GaugeMetricFamily}


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
    """Build an info family with one series per row."""
    metric = BY_NAME[name]
    family = InfoMetricFamily(metric.full_name.removesuffix("_info"), metric.help)
    for row in rows:
        family.add_metric([], _labels(name, row))
    return family


def histogram(name: str, bounds_ns: Sequence[int], rows: Mapping[tuple[str, ...], Histogram]) -> Metric:
    """Build a histogram from the ledger's finer ones by label values, which share their bounds."""
    metric = BY_NAME[name]
    family = HistogramMetricFamily(metric.full_name, metric.help, labels=metric.labels, unit=metric.unit)
    # The number of the ledger's buckets below each exported bound.
    under = [(str(bound), bisect_right(bounds_ns, bound * NANOSECONDS)) for bound in EXPOSED_BOUNDS]
    for labels, found in rows.items():
        totals = [0, *accumulate(found.buckets)]
        exposed = [*((bound, totals[number]) for bound, number in under), ("+Inf", totals[-1])]
        family.add_metric(list(_labels(name, labels).values()), exposed, found.sum_ns / NANOSECONDS)
    return family


def _labels(name: str, values: Sequence[object]) -> dict[str, str]:
    return dict(zip(BY_NAME[name].labels, map(_label, values), strict=True))


def _label(value: object) -> str:
    """Return valid label text, never empty: Prometheus drops empty labels."""
    text = "" if value is None else str(value)
    return text.encode(errors="replace").decode() or "none"
