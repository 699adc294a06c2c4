# SPDX-License-Identifier: GPL-2.0-only
"""Fork a child process: the only place that calls fork(2)."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Final

from soak.abi.libc import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

_CRASHED: Final = 70  # EX_SOFTWARE of sysexits.h
_FIRST_OWN_DESCRIPTOR: Final = 3
_LAST_DESCRIPTOR: Final = 4096


def fork(
    body: Callable[[], int | None],
    *,
    child_ends: Sequence[int] = (),
    parent_ends: Sequence[int] = (),
    keep: Collection[int] | None = None,
) -> int:
    """Fork a child that runs `body` and exits with its result; return the child's process id.

    The parent always closes `child_ends`. The child closes `parent_ends`; the parent closes them if
    fork(2) fails. With `keep`, the child closes every descriptor except these and the standard streams.

    Raises:
        OSError: fork(2) failed.
    """
    _flush()  # the child would write buffered output a second time
    try:
        pid = os.fork()
    except OSError:
        _close(parent_ends)
        raise
    else:
        if pid == 0:
            _be_child(body, parent_ends, keep)
        return pid
    finally:
        _close(child_ends)


def serve_parent(parent: int) -> None:
    """Tie this child to `parent`: die with it, and leave signals from the terminal to it."""
    die_with_parent(signal.SIGKILL, parent)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _be_child(
    body: Callable[[], int | None], parent_ends: Sequence[int], keep: Collection[int] | None
) -> None:
    code = _CRASHED
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)  # the parent's handlers are not for the child
        _close(parent_ends)
        if keep is not None:
            _close_all_but(keep)
        code = body() or 0
    except SystemExit as ended:
        code = ended.code or 0 if isinstance(ended.code, int | None) else _CRASHED
    except BaseException:  # noqa: BLE001 - the child reports any error before it exits
        traceback.print_exc()
    finally:
        # On any error: the child must not continue in the parent's code.
        try:
            _flush()
        finally:
            os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        # Python sets a stream to None if its descriptor was closed at startup.
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _close_all_but(keep: Collection[int]) -> None:
    first = _FIRST_OWN_DESCRIPTOR
    for descriptor in sorted(keep):
        os.closerange(first, descriptor)
        first = max(first, descriptor + 1)
    os.closerange(first, _LAST_DESCRIPTOR)
