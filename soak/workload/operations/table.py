# SPDX-License-Identifier: GPL-2.0-only
"""The table of file operations. Workers run every operation in it."""

from __future__ import annotations

from typing import Final

from soak.workload.operations.fault import FAULT
from soak.workload.operations.holes import PUNCH_HOLE, ZERO_RANGE
from soak.workload.operations.truncate import OPEN_TRUNCATE, TRUNCATE_DOWN, TRUNCATE_UP, TRUNCATE_ZERO
from soak.workload.operations.unlink import UNLINK

FILE_OPERATIONS: Final = (
    TRUNCATE_DOWN,
    TRUNCATE_ZERO,
    TRUNCATE_UP,
    OPEN_TRUNCATE,
    PUNCH_HOLE,
    ZERO_RANGE,
    UNLINK,
    FAULT,
)
BY_NAME: Final = {entry.operation: entry for entry in FILE_OPERATIONS}
