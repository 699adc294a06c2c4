# SPDX-License-Identifier: GPL-2.0-only
"""The vocabulary that configuration, ledger, journal, metrics and reports share.

Extend a list here. Its order is that of its columns in the ledger, whose header names the columns, so
that old ledgers stay readable.
"""

from __future__ import annotations

import errno
from enum import StrEnum


class RegionKind(StrEnum):
    """A kind of memory under test; anonymous is the control that separates broken vfio from DAX."""

    DEVICE_DAX = "device-dax"
    FS_DAX = "fs-dax"
    ANONYMOUS = "anonymous"


class Interface(StrEnum):
    """The kernel interface that pins memory: vfio for the long term, the others short."""

    VFIO_TYPE1 = "vfio-type1"
    O_DIRECT = "o-direct"
    VMSPLICE = "vmsplice"
    PROCESS_VM = "process-vm"
    NONE = "none"


SHORT_PINS = (Interface.O_DIRECT, Interface.VMSPLICE, Interface.PROCESS_VM)
LONG_TERM_PINS = tuple(
    interface for interface in Interface if interface not in {*SHORT_PINS, Interface.NONE}
)


class Backing(StrEnum):
    """The mapping of pinned memory."""

    SHARED = "shared"
    PRIVATE = "private"
    # Mapped shared when pinned, and no longer mapped.
    UNMAPPED = "unmapped"


class Operation(StrEnum):
    """One call under test."""

    MAP = "map"
    UNMAP = "unmap"
    HOLD = "hold"
    TRUNCATE_DOWN = "truncate-down"
    TRUNCATE_ZERO = "truncate-zero"
    TRUNCATE_UP = "truncate-up"
    OPEN_TRUNCATE = "open-truncate"
    PUNCH_HOLE = "punch-hole"
    ZERO_RANGE = "zero-range"
    UNLINK = "unlink"
    FAULT = "fault"


# Operations that free blocks of a file or change its size; they wait for short pins.
INVALIDATIONS = (
    Operation.TRUNCATE_DOWN,
    Operation.TRUNCATE_ZERO,
    Operation.TRUNCATE_UP,
    Operation.OPEN_TRUNCATE,
    Operation.PUNCH_HOLE,
    Operation.ZERO_RANGE,
    Operation.UNLINK,
)


class Outcome(StrEnum):
    """How an operation ended; an expectation separates refused from failed."""

    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class Violation(StrEnum):
    """A broken expectation."""

    UNEXPECTED_REFUSAL = "unexpected-refusal"
    UNEXPECTED_PIN = "unexpected-pin"
    WRONG_ERRNO = "wrong-errno"
    STALL = "stall"
    LATE_WAKEUP = "late-wakeup"
    EARLY_TRUNCATE = "early-truncate"
    LEAK = "leak"
    LOST_MACHINE = "lost-machine"


class DetectorName(StrEnum):
    """A detector of violations."""

    REFUSALS = "refusals"
    STALLS = "stalls"
    LEAKS = "leaks"


class ProbeResult(StrEnum):
    """The result of a probe for a known issue."""

    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    INCONCLUSIVE = "inconclusive"


class VerdictWord(StrEnum):
    """Verdicts; each prevails over the following ones."""

    FAIL = "fail"
    UNKNOWN = "unknown"
    PASS = "pass"  # noqa: S105 - a verdict


class Role(StrEnum):
    """The job of a worker."""

    MAPPER = "mapper"
    INVALIDATOR = "invalidator"
    HOLDER = "holder"


class WorkerState(StrEnum):
    """State of a worker, as it writes it; the supervisor writes `dead` after reaping one."""

    ABSENT = "absent"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    ENDED = "ended"
    DEAD = "dead"


class RunState(StrEnum):
    """State of a run, written by its supervisor, and in the lab by the host."""

    PREPARING = "preparing"
    RUNNING = "running"
    PAUSED = "paused"
    ENDED = "ended"
    LOST = "lost"


class Level(StrEnum):
    """Importance of a journal event, in increasing order."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


OTHER_ERRNO = "other"

# The errnos with a column of their own; all others share the last one.
ERRNOS = (
    "EOPNOTSUPP",
    "EFAULT",
    "EINVAL",
    "ENOMEM",
    "EEXIST",
    "ENOSPC",
    "EBUSY",
    "EPERM",
    "EAGAIN",
    "EIO",
    "ENODEV",
    "ENOENT",
    "EBADF",
    "ENOTTY",
    OTHER_ERRNO,
)

ERRNO_COLUMN = {getattr(errno, name): column for column, name in enumerate(ERRNOS) if name != OTHER_ERRNO}


def errno_name(number: int) -> str:
    """Return the symbol of an errno, or its number if Python has no symbol."""
    if number == errno.EOPNOTSUPP:
        return "EOPNOTSUPP"  # Linux gives ENOTSUP the same number, and Python prefers that name
    return errno.errorcode.get(number, str(number))
