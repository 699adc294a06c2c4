# SPDX-License-Identifier: GPL-2.0-only
"""The responses of the server: the metrics, in the requested format, and the landing page."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Final

from prometheus_client.exposition import choose_encoder

from exporter.catalogue import PREFIX
from soak import __version__

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

HTML: Final = "text/html; charset=utf-8"
PLAIN: Final = "text/plain; charset=utf-8"
_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>dax-soak</title></head>
<body>
<h1>dax-soak exporter {version}</h1>
{run}
<ul><li><a href="/metrics">Metrics</a></li><li><a href="/-/healthy">Health</a></li></ul>
</body>
</html>
"""
_NO_RUN: Final = "<p>The run directory has no readable ledger.</p>"


def metrics_page(collector: Collector, accept: str) -> tuple[bytes, str]:
    """Return the metrics and their content type for an Accept header."""
    try:
        encoder, content_type = choose_encoder(accept)
    except TypeError:
        # The library raises TypeError on a version in the header that is not a number.
        encoder, content_type = choose_encoder("")
    return encoder(collector), content_type


def landing_page(collector: Collector) -> bytes:
    """Return a page that describes the run and links to the metrics."""
    families = {family.name: family.samples for family in collector.collect()}
    facts = [fact for sample in families.get(PREFIX + "run", ()) for fact in sample.labels.items()]
    for sample in families.get(PREFIX + "verdict", ()):
        facts += [("verdict", sample.labels["verdict"])] if sample.value else []
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in facts
    )
    run = f"<table>{rows}</table>" if rows else _NO_RUN
    return _PAGE.format(version=__version__, run=run).encode()
