# SPDX-License-Identifier: GPL-2.0-only
"""What the program prints: nobody who reads it, or stops reading, has a say in what a run does.

A reader that goes away, a full disk behind a redirection, or a stream that was closed costs the output
and nothing else: the exit code stays the verdict's.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Final, ParamSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

_Arguments = ParamSpec("_Arguments")

_STANDARD_STREAMS: Final = (0, 1, 2)


def open_standard_streams() -> None:
    """Have the three standard streams, for whoever started this program without one of them.

    The next file that is opened would take its number, and be written to as if it was that stream.
    What a stream's encoding lacks is written as an escape: names of files need not be UTF-8.
    """
    for number in _STANDARD_STREAMS:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it takes the lowest number that is free, which is this one
    if sys.stdout is None:
        sys.stdout = Path("/dev/fd/1").open("w")  # noqa: SIM115 - open as long as the program runs
    if sys.stderr is None:
        sys.stderr = Path("/dev/fd/2").open("w")  # noqa: SIM115 - the same
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError, ValueError):  # it was closed, or is no file any more
                stream.reconfigure(errors="backslashreplace")


def put(text: str, stream: TextIO | None = None) -> bool:
    """Write to a stream, which is standard output where none is given, and flush it.

    False where it takes nothing any more; what comes later goes nowhere.
    """
    stream = stream or sys.stdout
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except (OSError, ValueError):
        _give_up(stream)
        return False
    return True


def complain(text: str) -> bool:
    """Write a line to standard error, as `put` does."""
    return put(f"{text}\n", sys.stderr)


def done_when_unread(work: Callable[_Arguments, int]) -> Callable[_Arguments, int]:
    """Make a command that prints by other means succeed when nobody reads what it shows any more."""

    @wraps(work)
    def shown(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> int:
        try:
            return work(*arguments, **named)
        except BrokenPipeError:
            _give_up(sys.stdout)
            return 0

    return shown


def _give_up(stream: TextIO) -> None:
    """Lead a stream nowhere: what waits in it would be tried again at the end of the program."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()
