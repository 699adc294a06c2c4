# SPDX-License-Identifier: GPL-2.0-only
"""Gives up what a server of numbers does not need: root's rights, and a life of its own."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

from soak.errors import UsageError

NOBODY: Final = 65534
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38


def drop_privileges(group: int) -> None:
    """Become nobody if this process is root, and let no program that it starts be more.

    It stays in `group`, by which runs that come later can be read, unless that is root's.

    Raises:
        UsageError: the kernel does not allow it.
    """
    try:
        if os.geteuid() == 0:
            os.setgroups([group] if group else [])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    except OSError as error:
        raise UsageError(
            f"The exporter cannot give up root's rights ({error.strerror}): start it as a user"
            " that can read the run directory."
        ) from error


def die_with_parent(parent: int) -> None:
    """Ask the kernel for SIGTERM when the thread that started this process ends.

    `parent` is the process whose end counts, in case it has ended by now. The kernel forgets the
    request when a process changes its user, so it comes after `drop_privileges`.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def _prctl(option: int, argument: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    rest = (ctypes.c_ulong(0),) * 3
    if libc.prctl(option, ctypes.c_ulong(argument), *rest) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
