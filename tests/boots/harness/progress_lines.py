# SPDX-License-Identifier: GPL-2.0-only
"""What a test run prints while its guests boot and soak: one line for each thing worth knowing.

Lab tests say it, in whichever process they run; the process that owns the terminal prints it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

_PLACE: Final = "DAX_SOAK_TEST_PROGRESS"
_LARGEST: Final = 4096
_END: Final = b"\0"
_WIDTH: Final = 200
_KEPT: Final = "run directory kept: "


def say(sentence: str) -> None:
    """Have a line printed for the test that runs; without anybody to print it, it is dropped."""
    place = os.environ.get(_PLACE)
    if place is None:
        return
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    name = re.sub(r"^tests/|\.py|@[^]]*$", "", test)
    line = f"{name}: {sentence}" if name else sentence
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.sendto(line.encode()[:_LARGEST], place)


def keep(place: Path) -> None:
    """Note, among what the running test prints, where its run is kept; a test that fails shows it."""
    sys.stdout.write(f"{_KEPT}{place}\n")


def kept(printed: str) -> list[str]:
    """Return the places that a test has noted, in what it printed."""
    found = [line.removeprefix(_KEPT) for line in printed.splitlines() if line.startswith(_KEPT)]
    return list(dict.fromkeys(found))


class ProgressPrinter:
    """Prints what tests say, each line with the time since the start. `close` ends it."""

    def __init__(self) -> None:
        # Its own, for while a test runs pytest has the standard output lead elsewhere.
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        self._began = time.monotonic()
        self._directory = Path(tempfile.mkdtemp(prefix="dax-soak-test-"))
        place = self._directory / "progress"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(place))
        # Test processes that are started later inherit it.
        os.environ[_PLACE] = str(place)
        self._thread = threading.Thread(target=self._print_all, daemon=True)
        self._thread.start()

    def close(self) -> None:
        place = os.environ.pop(_PLACE)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.sendto(_END, place)
        self._thread.join()
        self._socket.close()
        self._out.close()
        shutil.rmtree(self._directory)

    def _print_all(self) -> None:
        while (said := self._socket.recv(_LARGEST)) != _END:
            minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
            line = f"{minutes:3}:{seconds:02} {said.decode(errors='replace')}"
            self._out.write(f"{line[:_WIDTH]}\n")
