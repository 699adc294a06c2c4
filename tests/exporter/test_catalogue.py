# SPDX-License-Identifier: GPL-2.0-only
"""The catalogue and what is exported name the same metrics, and the exporter keeps to itself."""

from __future__ import annotations

import ast
import sys
from typing import TYPE_CHECKING

import pytest

from exporter.catalogue import METRICS, PREFIX, Metric, MetricType
from exporter.collector import LedgerCollector
from soak.ledger.reader import LedgerReader
from soak.model.vocabulary import ProbeResult
from tests.exporter.support import KNOWN_ISSUE, make_ledger
from tests.support.program import ROOT

if TYPE_CHECKING:
    from pathlib import Path

ALLOWED = {
    "prometheus_client",
    "structlog",
    "soak.log",
    "exporter",
    *(
        "soak",
        "soak.ledger.reader",
        "soak.ledger.layout",
        "soak.ledger.schema",
        "soak.ledger.histogram",
        "soak.ledger.view",
        "soak.ledger.worker_view",
        "soak.model.cell",
        "soak.model.vocabulary",
        "soak.errors",
    ),
    *("soak.config.listen", "soak.files.regular", "soak.files.bounded_json", "soak.files.printable"),
    # How a service tells its manager that it is alive.
    "soak.process.notify",
    "soak.process.http_probe",
    "soak.process.watchdog",
}
MODULES = sorted((ROOT / "exporter").glob("*.py"))

each_metric = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)


def test_exported_series_match_the_catalogue(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path / "ledger")
    # What was not probed is neither confirmed nor refuted.
    ledger.block("supervisor").set_at("probes", 1, KNOWN_ISSUE, ProbeResult.REFUTED)
    with LedgerReader.open(tmp_path / "ledger") as reader:
        families = LedgerCollector(lambda: reader).collect()
    exported = {
        (sample.name, family.type, family.documentation, frozenset(sample.labels) - {"le"})
        for family in families
        for sample in family.samples
    }
    promised = {
        (name, metric.type, metric.help, frozenset(metric.labels))
        for metric in METRICS
        for name in metric.sample_names
    }
    assert exported == promised


def test_metric_names_are_unique() -> None:
    names = [name for metric in METRICS for name in metric.sample_names]
    assert len(names) == len(set(names))


@each_metric
def test_names_follow_the_conventions(metric: Metric) -> None:
    assert metric.full_name == PREFIX + metric.name
    assert metric.name.endswith("_total") == (metric.type is MetricType.COUNTER)
    assert metric.name.endswith("_info") == (metric.type is MetricType.INFO)
    for unit in ("seconds", "bytes", "ratio"):
        assert (metric.unit == unit) == metric.name.removesuffix("_total").endswith(f"_{unit}")
    assert metric.help.endswith(".")


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_exporter_imports_only_the_ledger_and_itself(module: Path) -> None:
    imported: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            if node.module == "soak":
                assert {alias.name for alias in node.names} == {"__version__"}
            imported.add(node.module or "")
    outside = {
        name for name in imported if name.partition(".")[0] not in sys.stdlib_module_names | {"_typeshed"}
    }
    assert {name if name.startswith("soak") else name.partition(".")[0] for name in outside} <= ALLOWED
