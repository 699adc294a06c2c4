# SPDX-License-Identifier: GPL-2.0-only
"""Metrics of a run, as Prometheus reads them: over HTTP, or of a ledger that is left."""

from __future__ import annotations

import re
import urllib.request
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from exporter.collector import LedgerCollector
from soak.ledger.reader import LedgerReader

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from prometheus_client import Metric

# Values of metrics, by name and labels.
Scrape = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def address_in(printed: str) -> str | None:
    """Return where a lab serves metrics: a boot that was tried again has another exporter."""
    found = re.findall(r"Metrics at (http://\S+)", printed)
    return found[-1] if found else None


def fetch(address: str) -> Scrape:
    with urllib.request.urlopen(address, timeout=30) as answer:  # noqa: S310 - loopback
        return _by_name(text_string_to_metric_families(answer.read().decode()))


def of_ledger(path: Path) -> Scrape:
    return _by_name(LedgerCollector(lambda: LedgerReader.open(path)).collect())


def total(scrape: Scrape, name: str, **labels: str) -> float:
    """Sum the series of a scrape that have this name and these labels."""
    return sum(
        value
        for (found, own), value in scrape.items()
        if found == f"dax_soak_{name}" and labels.items() <= dict(own).items()
    )


def _by_name(families: Iterable[Metric]) -> Scrape:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }
