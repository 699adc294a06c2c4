# SPDX-License-Identifier: GPL-2.0-only
"""The words of the field that configuration, ledger, journal, metrics and reports share.

A list that grows, grows here. The order of a list is the order of its columns in a ledger, which names
them in its own header, so that an old ledger stays readable.
"""

from __future__ import annotations

import errno
from enum import StrEnum


class RegionKind(StrEnum):
    """A span of memory under test; anonymous is the control that tells broken vfio from broken DAX."""

    DEVICE_DAX = "device-dax"
    FS_DAX = "fs-dax"
    ANONYMOUS = "anonymous"


class Interface(StrEnum):
    """The way in which memory is pinned: for the long term, or for as long as a short pin lasts."""

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
    """How the memory is mapped that is pinned."""

    SHARED = "shared"
    PRIVATE = "private"
    # Mapped shared when it was pinned, and by nobody any more.
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


# The operations that take blocks away from a file or change its size: they wait for short pins.
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
    """How an operation ended: see the expectations for which errno refuses and which fails."""

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
    """What reads the ledger or the kernel and judges."""

    REFUSALS = "refusals"
    STALLS = "stalls"
    LEAKS = "leaks"


class ProbeResult(StrEnum):
    """What a probe has shown of a known issue; inconclusive where it could not tell."""

    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    INCONCLUSIVE = "inconclusive"


class VerdictWord(StrEnum):
    """In the order in which one prevails over the next."""

    FAIL = "fail"
    UNKNOWN = "unknown"
    PASS = "pass"  # noqa: S105 - a verdict


class Role(StrEnum):
    """What a worker does."""

    MAPPER = "mapper"
    INVALIDATOR = "invalidator"
    HOLDER = "holder"


class WorkerState(StrEnum):
    """What a worker says of itself; `dead` is written by the supervisor when it has reaped one."""

    ABSENT = "absent"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    ENDED = "ended"
    DEAD = "dead"


class RunState(StrEnum):
    """How far a run is, as its supervisor (and in the lab its host) writes it."""

    PREPARING = "preparing"
    RUNNING = "running"
    PAUSED = "paused"
    ENDED = "ended"
    LOST = "lost"


class Level(StrEnum):
    """How much an event of the journal matters; the less it does, the earlier it stands here."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


OTHER_ERRNO = "other"

# The errnos that get a column of their own; the rest share the last one.
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
    """Return the symbol of an errno, or its number where Python knows no symbol."""
    if number == errno.EOPNOTSUPP:
        return "EOPNOTSUPP"  # Linux gives ENOTSUP the same number, and Python prefers that name
    return errno.errorcode.get(number, str(number))
