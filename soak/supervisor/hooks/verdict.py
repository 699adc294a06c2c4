# SPDX-License-Identifier: GPL-2.0-only
"""The verdict so far, kept where an exporter sees it: in the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

from soak.supervisor.hooks.base import Hook

if TYPE_CHECKING:
    from soak.ledger.writer import BlockWriter
    from soak.verdict import Judge


class VerdictKeeper(Hook):
    """Has the judge speak after each sample. The lab's host does that for its guest."""

    def __init__(self, judge: Judge, block: BlockWriter) -> None:
        self._judge, self._block = judge, block

    def sampled(self) -> None:
        self._block.set_word("verdict", self._judge.verdict().verdict)
