# SPDX-License-Identifier: GPL-2.0-only
"""The two workers of a trial. They take turns by three words of the ledger, and share nothing else.

The holder makes the file, pins a part of it and says so (`trial_held`). The invalidator then takes
blocks away, which has to wait. The holder gives the pin back (`trial_released`) and touches nothing
until the invalidator says that the trial is over (`trial_over`), by its own end or because it was freed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from soak.abi.mmap import MADV_DONTNEED, MAP_SHARED, PROT_READ, PROT_WRITE, Mapping
from soak.abi.transfer import write_from
from soak.model.vocabulary import Backing, Operation
from soak.regions.fs_dax import TRIAL_FILE_SIZE
from soak.workload.loop import SKIPPED
from soak.workload.operations.base import FileUnderTest
from soak.workload.operations.table import FILE_OPERATIONS
from soak.workload.pins.methods import BLOCKING, METHODS
from soak.workload.pins.short import HoldBook, Holding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from collections.abc import Mapping as Table
    from pathlib import Path

    from soak.ledger.writer import BlockWriter
    from soak.regions import FsDaxRegion
    from soak.workload.choices import Choice
    from soak.workload.loop import Barrier
    from soak.workload.worker_plan import WorkerPlan

# How long to sleep between two looks at the other one's word: longer and longer, for each sleep costs a
# timer, which is dear under emulation; and never so long that the shortest pin would be over before it is
# seen.
_FIRST_SLEEP_SECONDS: Final = 0.001
_SLEEP_GROWTH: Final = 1.3
_LONGEST_SLEEP_SECONDS: Final = 0.008
_CLOSED: Final = -1
_FILL: Final = ctypes.create_string_buffer(b"\xa5" * TRIAL_FILE_SIZE, TRIAL_FILE_SIZE)


class TrialHolder:
    """Makes the file of each trial and pins a part of it."""

    leads = True

    def __init__(
        self,
        block: BlockWriter,
        partner: BlockWriter,
        plan: WorkerPlan,
        region: FsDaxRegion,
        *,
        slow: Sequence[Path],
        fast: Sequence[Path],
    ) -> None:
        """Open the devices.

        Raises:
            OSError: a device cannot be opened.
        """
        self._plan, self._region = plan, region
        self._held, self._released = block.view("trial_held"), block.view("trial_released")
        self._over = partner.view("trial_over")
        self._partner_begun, self._partner_ended = partner.view("begun"), partner.view("ended")
        self._generation = partner.view("generation")
        self._holding = Holding(HoldBook(block, certain=True), slow, fast)
        self._mapping: Mapping | None = None
        self._unmaps = False

    def paced(self, barrier: Barrier) -> Iterator[Choice]:
        """Yield what to do when its time has come; go on behind the last trial that was begun."""
        number = self._held[0]
        while True:
            # Trials that an invalidator did not live to see end are over when another is there.
            sleeps = _sleeps()
            while self._over[0] < number:
                # Coming to rest unmaps the file, which nobody may touch while it is waited for.
                waits = self._partner_begun[0] != self._partner_ended[0]
                if barrier.stopping if waits else not barrier.passed():
                    return
                time.sleep(next(sleeps))
            self._drop()
            yield from self._plan.trial_choices(number)
            self._held[0] = self._released[0] = number = number + 1

    def calls(self) -> Table[Operation, Callable[[Choice], int]]:
        return {Operation.FAULT: self._make_file, Operation.HOLD: self._hold}

    def rest(self) -> None:
        """Unmap the pages, not the file: since Linux 6.15 a mapping counts as a reference."""
        if self._mapping is not None:
            self._mapping.advise(MADV_DONTNEED)

    def close(self) -> None:
        self._drop()
        self._holding.close()

    def _make_file(self, choice: Choice) -> int:
        """Write the range: a hole or an unwritten extent would pin the zero page, not DAX memory."""
        path = self._region.trial_path(choice.place, self._generation[0])
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            result = write_from(descriptor, ctypes.addressof(_FILL), choice.length, choice.offset)
            if result == 0:
                self._mapping = Mapping(TRIAL_FILE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor)
        finally:
            os.close(descriptor)
        return result

    def _hold(self, choice: Choice) -> int:
        if self._mapping is None:  # the file could not be made, which has been counted
            return SKIPPED
        self._unmaps = METHODS[choice.method].backing is Backing.UNMAPPED
        address = self._mapping.address + choice.offset
        result = self._holding.hold(choice, address, self._begin_trial)
        if result == errno.EFAULT and METHODS[choice.method] is BLOCKING:
            # The other one is told before the call that blocks, and may have been quicker.
            return SKIPPED
        return result

    def _begin_trial(self) -> None:
        if self._unmaps:
            self._drop()
        self._held[0] += 1

    def _drop(self) -> None:
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None


class TrialInvalidator:
    """Takes blocks of the file away while they are pinned, and empties it afterwards."""

    leads = False

    def __init__(
        self, block: BlockWriter, partner: BlockWriter, plan: WorkerPlan, region: FsDaxRegion
    ) -> None:
        self._plan, self._region = plan, region
        self._over, self._generation = block.view("trial_over"), block.view("generation")
        self._held, self._released = partner.view("trial_held"), partner.view("trial_released")
        self._file = FileUnderTest(b"", _CLOSED)

    def paced(self, barrier: Barrier) -> Iterator[Choice]:
        """Yield an invalidation as soon as the pin is taken, then what empties the file."""
        # What was under way before this worker started is not its own to judge.
        self._over[0] = self._held[0]
        while True:
            sleeps = _sleeps()
            while self._held[0] == self._over[0]:
                if not barrier.passed():
                    return
                time.sleep(next(sleeps))
            number = self._held[0] - 1
            invalidate, empty = self._plan.trial_choices(number)
            self._file.path = bytes(self._region.trial_path(invalidate.place, self._generation[0]))
            if self._released[0] <= number:
                if invalidate.operation is not Operation.UNLINK:
                    # Nobody else may have the file open when it is unlinked, or it stays.
                    self._open(0)
                time.sleep(invalidate.hold_ns / 1e9)
                yield invalidate
                self._close()
            # The next trial starts with an empty file, whatever became of this one.
            self._open(os.O_CREAT)
            yield empty
            self._close()
            self._over[0] = number + 1

    def calls(self) -> Table[Operation, Callable[[Choice], int]]:
        return {
            entry.operation: partial(self._do, entry.call)
            for entry in FILE_OPERATIONS
            if entry.aim is not None
        }

    def rest(self) -> None:
        """Nothing is mapped here."""

    def close(self) -> None:
        self._close()

    def _do(self, call: Callable[[FileUnderTest, int, int], int], choice: Choice) -> int:
        return call(self._file, choice.offset, choice.length)

    def _open(self, flags: int) -> None:
        self._file.descriptor = os.open(self._file.path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)

    def _close(self) -> None:
        if self._file.descriptor != _CLOSED:
            os.close(self._file.descriptor)
            self._file.descriptor = _CLOSED


def _sleeps() -> Iterator[float]:
    seconds = _FIRST_SLEEP_SECONDS
    while True:
        yield seconds
        seconds = min(seconds * _SLEEP_GROWTH, _LONGEST_SLEEP_SECONDS)
