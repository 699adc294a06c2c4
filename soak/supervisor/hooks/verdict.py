# SPDX-License-Identifier: GPL-2.0-only
"""Keeps the current verdict in the ledger, for the exporter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from soak.supervisor.hooks.base import Hook

if TYPE_CHECKING:
    from soak.ledger.writer import BlockWriter
    from soak.verdict import Judge


class VerdictKeeper(Hook):
    """Writes the judge's verdict to the ledger after each sample. In a lab the host does that."""

    def __init__(self, judge: Judge, block: BlockWriter) -> None:
        self._judge, self._block = judge, block

    def sampled(self) -> None:
        self._block.set_word("verdict", self._judge.verdict().verdict)
