# SPDX-License-Identifier: GPL-2.0-only
"""Output to the standard streams that never fails a run.

A closed pipe, a full disk behind a redirection or a closed stream loses the output and nothing else: the
exit code remains that of the verdict.
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
    """Open each closed standard stream on /dev/null.

    Otherwise the next file opened would get its descriptor, and the program would print into that file.
    The streams escape characters outside their encoding, because file names need not be UTF-8.
    """
    for number in _STANDARD_STREAMS:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor is this one
    if sys.stdout is None:
        sys.stdout = Path("/dev/fd/1").open("w")  # noqa: SIM115 - open as long as the program runs
    if sys.stderr is None:
        sys.stderr = Path("/dev/fd/2").open("w")  # noqa: SIM115 - the same
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError, ValueError):  # the stream is closed
                stream.reconfigure(errors="backslashreplace")


def put(text: str, stream: TextIO | None = None) -> bool:
    """Write `text` to `stream`, by default standard output, and flush it.

    Return False if that fails; later output to the stream is discarded.
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


def put_error(text: str) -> bool:
    """Write a line to standard error; see `put`."""
    return put(f"{text}\n", sys.stderr)


def ignore_closed_output(work: Callable[_Arguments, int]) -> Callable[_Arguments, int]:
    """Make a command that prints without `put` succeed when its reader closes the pipe."""

    @wraps(work)
    def shown(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> int:
        try:
            return work(*arguments, **named)
        except BrokenPipeError:
            _give_up(sys.stdout)
            return 0

    return shown


def _give_up(stream: TextIO) -> None:
    """Redirect a stream to /dev/null: Python would flush its buffer again at exit, and fail."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        stream.flush()
