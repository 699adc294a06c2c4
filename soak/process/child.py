# SPDX-License-Identifier: GPL-2.0-only
"""The one way in which the program forks."""

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
    """Start a process that does `body` and exits with what that returns; return its process id.

    `child_ends` are descriptors for the child alone: they are closed here on every path. `parent_ends`
    are closed in the child, and here where there is no child. With `keep` the child has, beside the
    standard streams, these descriptors and no others.

    Raises:
        OSError: the kernel has no process for it.
    """
    _flush()  # what is buffered would be written twice
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
    """Be a child that ends with the process `parent`, which alone acts on signals from a terminal."""
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
                signal.signal(number, signal.SIG_DFL)  # what the parent does then is not for the child
        _close(parent_ends)
        if keep is not None:
            _close_all_but(keep)
        code = body() or 0
    except SystemExit as ended:
        code = ended.code or 0 if isinstance(ended.code, int | None) else _CRASHED
    except BaseException:  # noqa: BLE001 - the last thing that this process does is to say why
        traceback.print_exc()
    finally:
        # Whatever was raised, the child must not go on as a second parent.
        try:
            _flush()
        finally:
            os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        # There is none where the descriptor was closed; one that takes nothing loses what it has.
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
