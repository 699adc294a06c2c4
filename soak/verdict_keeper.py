"""The verdict so far, kept where it can be seen: in the ledger, and at the end in verdict.json."""

from __future__ import annotations

from typing import TYPE_CHECKING

from soak.companion import Companion
from soak.rundir import VERDICT

if TYPE_CHECKING:
    from pathlib import Path

    from soak.ledger import BlockWriter
    from soak.verdict import Judge, Verdict


class VerdictKeeper(Companion):
    """Has the judge speak after each sample. The lab's host does that for its guest."""

    def __init__(self, judge: Judge, block: BlockWriter, directory: Path) -> None:
        self._judge, self._block, self._directory = judge, block, directory

    def sampled(self) -> None:
        self._block.set_word("verdict", self._judge.verdict().verdict)

    def conclude(self) -> Verdict:
        """Judge the whole run and write the verdict down."""
        verdict = self._judge.verdict()
        self._block.set_word("verdict", verdict.verdict)
        verdict.write(self._directory / VERDICT)
        return verdict
