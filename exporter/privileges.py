# SPDX-License-Identifier: GPL-2.0-only
"""Drops root privileges, and ties the exporter's lifetime to its parent process."""

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
    """Switch from root to user nobody, and set no_new_privs.

    The process stays in `group`, which may read later runs, unless that is group root.

    Raises:
        UsageError: a system call failed.
    """
    try:
        if os.geteuid() == 0:
            os.setgroups([group] if group else [])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    except OSError as error:
        raise UsageError(
            f"The exporter cannot drop root privileges ({error.strerror}): start it as a user"
            " that can read the run directory."
        ) from error


def die_with_parent(parent: int) -> None:
    """Request SIGTERM from the kernel for when the thread that started this process exits.

    `parent` is the pid of the expected parent, which may already have exited. Call this after
    `drop_privileges`: the kernel clears the request when the process changes its user.
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
