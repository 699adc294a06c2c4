# SPDX-License-Identifier: GPL-2.0-only
"""Where a user's programs keep what they fetch and what they did: the XDG base directories."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from soak.errors import UsageError


def user_directory(variable: str, below_home: str) -> Path:
    """Return the directory that a variable names, else the one that is its default at home.

    An empty variable counts as none, as the XDG specification has it.

    Raises:
        UsageError: the path is relative, or nobody says where home is.
    """
    named = absolute_directory(variable)
    if named is not None:
        return named
    home = os.environ.get("HOME")
    if home is None:
        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            raise UsageError(
                f"HOME is not set, and this user has no entry in the password file: set HOME or "
                f"{variable} to a directory that may be written to."
            ) from None
    if not Path(home).is_absolute():
        raise UsageError(f"HOME is {home!r}: set it, or {variable}, to an absolute path.")
    return Path(home) / below_home


def absolute_directory(variable: str) -> Path | None:
    """Return the directory that a variable names; None where it names none.

    Raises:
        UsageError: the path is relative: it would be another directory each time.
    """
    text = os.environ.get(variable)
    if not text:
        return None
    if not Path(text).is_absolute():
        raise UsageError(f"{variable} is {text!r}: set it to an absolute path, or unset it.")
    return Path(text)
