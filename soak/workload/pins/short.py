# SPDX-License-Identifier: GPL-2.0-only
"""Short pins: take, hold and release them, and record their times in the ledger.

To judge a wait, the stall detector needs the time in which pages were certainly pinned, and the time
from which they certainly were not.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from soak.abi.aio import IOCB_CMD_PREAD, IOCB_CMD_PWRITE, Transfers
from soak.abi.mmap import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE, Mapping
from soak.abi.splice import PagePipe
from soak.abi.transfer import copy_from_process, copy_to_process, open_direct, read_into, write_from
from soak.ledger.schema import HOLD_COLUMNS, HOLDS_LENGTH
from soak.model.vocabulary import SHORT_PINS, Backing, Interface
from soak.regions.fs_dax import TRIAL_FILE_SIZE
from soak.regions.transfer_disks import DATA_OFFSET
from soak.workload.pins.methods import (
    BLOCKING,
    COPY,
    INTO_MEMORY,
    METHODS,
    PIPE,
    PIPE_UNMAPPED,
    REPEATED,
    Target,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from soak.ledger.writer import BlockWriter
    from soak.workload.choices import Choice

_POLL_SECONDS: Final = 0.001
_WIDTH: Final = len(HOLD_COLUMNS)
_TAKE_BEFORE, _TAKE_AFTER, _RELEASE_BEFORE, _RELEASE_AFTER = range(_WIDTH - 4, _WIDTH)


class HoldBook:
    """Records one hold at a time in the `holds` ring of its worker's block."""

    def __init__(self, block: BlockWriter, *, certain: bool) -> None:
        """Take `certain`: the pages belong to the file, none is a hole's zero page."""
        self._words = block.view("holds")
        self._begun = block.view("holds_begun")
        self._certain = int(certain)
        self._row = 0

    def begin(self, choice: Choice) -> None:
        """Record a hold before its pin is taken."""
        words, row = self._words, self._begun[0] % HOLDS_LENGTH * _WIDTH
        method = METHODS[choice.method]
        values = (
            SHORT_PINS.index(method.interface),
            choice.region,
            choice.place,
            choice.offset,
            choice.length,
            int(method.backing is Backing.SHARED),
            self._certain,
            int(method.repeated),
            time.monotonic_ns(),
            0,
            0,
            0,
        )
        for column, value in enumerate(values):
            words[row + column] = value
        self._row = row
        self._begun[0] += 1

    def taken(self, *, by_device: bool = False) -> None:
        """Record that the pages are pinned; `by_device`: a device may release them at any time.

        Such a pin is certain only until it was last observed. Readers assume that a pin without a
        release time is still held, so the release time is stored first.
        """
        now = time.monotonic_ns()
        if by_device:
            self._words[self._row + _RELEASE_BEFORE] = now
        self._words[self._row + _TAKE_AFTER] = now

    def releasing(self, since_ns: int | None = None) -> None:
        """Record the last time at which the pages were certainly pinned, by default now."""
        self._words[self._row + _RELEASE_BEFORE] = since_ns or time.monotonic_ns()

    def released(self) -> None:
        self._words[self._row + _RELEASE_AFTER] = time.monotonic_ns()

    def refused(self) -> None:
        """Record that nothing was pinned: nothing waits for a hold of no duration."""
        begun = self._words[self._row + _TAKE_BEFORE]
        self._words[self._row + _RELEASE_AFTER] = begun


class Holding:
    """Takes and releases pins by every method."""

    def __init__(self, book: HoldBook, slow: Sequence[Path], fast: Sequence[Path]) -> None:
        """Open the devices of the transfers.

        Raises:
            OSError: a device cannot be opened, or the kernel has no asynchronous I/O.
        """
        self._book = book
        self._devices = {
            Target.SLOW_DEVICE: [open_direct(path) for path in slow],
            Target.FAST_DEVICE: [open_direct(path) for path in fast],
        }
        self._transfers = Transfers() if slow else None
        self._buffer = Mapping(TRIAL_FILE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
        self._methods: dict[str, Callable[[Choice, int, Callable[[], None]], int]] = {
            PIPE.name: self._by_pipe,
            PIPE_UNMAPPED.name: self._by_pipe,
            BLOCKING.name: self._by_blocking_transfer,
            REPEATED.name: self._by_repeated_transfers,
            COPY.name: self._by_copying,
        }

    def hold(self, choice: Choice, address: int, taken: Callable[[], None]) -> int:
        """Pin `choice.length` bytes at `address` for `choice.hold_ns` or one transfer.

        Call `taken` once the pages are pinned, or before a blocking transfer. Return 0 or an errno.
        """
        pin = self._methods.get(METHODS[choice.method].name, self._by_transfer)
        self._book.begin(choice)
        result = pin(choice, address, taken)
        if result and METHODS[choice.method].interface is Interface.VMSPLICE:
            # The file was truncated before vmsplice took its pages.
            self._book.refused()
        else:
            self._book.released()
        return result

    def close(self) -> None:
        for devices in self._devices.values():
            for device in devices:
                os.close(device)
        if self._transfers is not None:
            self._transfers.close()
        self._buffer.close()

    def _by_pipe(self, choice: Choice, address: int, taken: Callable[[], None]) -> int:
        pipe = PagePipe()
        try:
            result = pipe.take(address, choice.length)
            if result == 0:
                self._book.taken()
                taken()
                time.sleep(choice.hold_ns / 1e9)
                self._book.releasing()
        finally:
            pipe.close()
        return result

    def _by_transfer(self, choice: Choice, address: int, taken: Callable[[], None]) -> int:
        """Let a slow device hold the pages, and poll until its transfer completes."""
        transfers = self._transfers
        if transfers is None:
            raise RuntimeError("the plan has a transfer and no slow device")
        operation = IOCB_CMD_PREAD if choice.access & INTO_MEMORY else IOCB_CMD_PWRITE
        result = transfers.submit(operation, self._device(choice), address, choice.length, DATA_OFFSET)
        if result:
            return result
        self._book.taken(by_device=True)
        taken()
        while True:
            polled = time.monotonic_ns()
            ended = transfers.completed(_POLL_SECONDS)
            if ended is not None:
                return ended
            self._book.releasing(polled)

    def _by_blocking_transfer(self, choice: Choice, address: int, taken: Callable[[], None]) -> int:
        taken()
        return self._transfer(choice, address)

    def _by_repeated_transfers(self, choice: Choice, address: int, taken: Callable[[], None]) -> int:
        return self._repeat(choice, taken, lambda: self._transfer(choice, address))

    def _by_copying(self, choice: Choice, address: int, taken: Callable[[], None]) -> int:
        call = copy_to_process if choice.access & INTO_MEMORY else copy_from_process
        own, buffer = os.getpid(), self._buffer.address
        return self._repeat(choice, taken, lambda: call(own, address, buffer, choice.length))

    def _repeat(self, choice: Choice, taken: Callable[[], None], work: Callable[[], int]) -> int:
        """Pin briefly and repeatedly, until the hold time is over or the file was truncated."""
        end = time.monotonic_ns() + choice.hold_ns
        result = work()
        if result == 0:
            taken()
            while time.monotonic_ns() < end and work() == 0:
                pass
        return result

    def _transfer(self, choice: Choice, address: int) -> int:
        call = read_into if choice.access & INTO_MEMORY else write_from
        return call(self._device(choice), address, choice.length, DATA_OFFSET)

    def _device(self, choice: Choice) -> int:
        devices = self._devices[METHODS[choice.method].target]
        return devices[choice.number // 2 % len(devices)]
