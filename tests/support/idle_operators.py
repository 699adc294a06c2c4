# SPDX-License-Identifier: GPL-2.0-only
"""Operators whose operations do nothing: workers are real processes, and no kernel is tried."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from soak.model.vocabulary import Operation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from soak.ledger.writer import BlockWriter
    from soak.workload.choices import Choice


class Idle:
    """An operator that takes its time and does nothing."""

    def __init__(self, block: BlockWriter) -> None:
        self._block = block

    def calls(self) -> Mapping[Operation, Callable[[Choice], int]]:
        return dict.fromkeys(Operation, self._do)

    def rest(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _do(self, _choice: Choice) -> int:
        time.sleep(0.0005)
        return 0


class Stuck(Idle):
    """An operator whose first call never ends by itself."""

    def _do(self, _choice: Choice) -> int:
        while True:
            time.sleep(60)
