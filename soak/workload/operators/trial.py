# SPDX-License-Identifier: GPL-2.0-only
"""The two workers of a trial, which synchronise over three words of the ledger.

The holder creates the file, pins a range of it and increments `trial_held`. The invalidator then frees
blocks, which has to wait. The holder releases the pin, increments `trial_released` and leaves the file
alone until the invalidation has ended or was interrupted and the invalidator sets `trial_over`.
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

# The delay between two polls of the partner's word. It grows, because a timer is expensive under
# emulation, but stays shorter than the shortest pin, so that the invalidator misses none.
_FIRST_SLEEP_SECONDS: Final = 0.001
_SLEEP_GROWTH: Final = 1.3
_LONGEST_SLEEP_SECONDS: Final = 0.008
_CLOSED: Final = -1
_FILL: Final = ctypes.create_string_buffer(b"\xa5" * TRIAL_FILE_SIZE, TRIAL_FILE_SIZE)


class TrialHolder:
    """Creates the file of each trial and pins a range of it."""

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
        """Yield the choices of a trial when the previous one is over; resume after the last one."""
        number = self._held[0]
        while True:
            # An invalidator that replaces another declares its unfinished trial over.
            sleeps = _sleeps()
            while self._over[0] < number:
                # A rest unmaps the file, which no process may touch while the invalidation waits.
                waits = self._partner_begun[0] != self._partner_ended[0]
                if barrier.stopping if waits else not barrier.passed():
                    return
                time.sleep(next(sleeps))
            self._drop()
            yield from self._plan.trial_choices(number)
            self._held[0] = self._released[0] = number = number + 1

    def calls(self) -> Table[Operation, Callable[[Choice], int]]:
        return {Operation.FAULT: self._create_file, Operation.HOLD: self._hold}

    def rest(self) -> None:
        """Unmap the pages, not the file: since Linux 6.15 a mapping counts as a reference."""
        if self._mapping is not None:
            self._mapping.advise(MADV_DONTNEED)

    def close(self) -> None:
        self._drop()
        self._holding.close()

    def _create_file(self, choice: Choice) -> int:
        """Create the file and write the range, because a pin of a hole pins the zero page."""
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
        if self._mapping is None:  # creating the file failed, which the loop counted
            return SKIPPED
        self._unmaps = METHODS[choice.method].backing is Backing.UNMAPPED
        address = self._mapping.address + choice.offset
        result = self._holding.hold(choice, address, self._begin_trial)
        if result == errno.EFAULT and METHODS[choice.method] is BLOCKING:
            # `trial_held` precedes the blocking call, so the invalidator may free the range first.
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
    """Frees blocks of the file while they are pinned, then empties the file."""

    leads = False

    def __init__(
        self, block: BlockWriter, partner: BlockWriter, plan: WorkerPlan, region: FsDaxRegion
    ) -> None:
        self._plan, self._region = plan, region
        self._over, self._generation = block.view("trial_over"), block.view("generation")
        self._held, self._released = partner.view("trial_held"), partner.view("trial_released")
        self._file = FileUnderTest(b"", _CLOSED)

    def paced(self, barrier: Barrier) -> Iterator[Choice]:
        """Yield an invalidation once the pin is taken, then a truncate that empties the file."""
        # Skip the trial that was in progress before this worker started.
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
                    # Unlink frees no blocks while a descriptor is open.
                    self._open(0)
                time.sleep(invalidate.hold_ns / 1e9)
                yield invalidate
                self._close()
            # The next trial starts with an empty file, whatever the outcome of this one.
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
        """Do nothing: this worker maps no pages."""

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
