# SPDX-License-Identifier: GPL-2.0-only
"""The XDG base directories: caches and state of a user's programs."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from soak.errors import UsageError


def user_directory(variable: str, below_home: str) -> Path:
    """Return the directory that `variable` names, by default `below_home` in the home directory.

    An empty variable counts as unset (XDG Base Directory Specification).

    Raises:
        UsageError: the path is relative, or the user has no home directory.
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
                f"{variable} to a writable directory."
            ) from None
    if not Path(home).is_absolute():
        raise UsageError(f"HOME is {home!r}: set it, or {variable}, to an absolute path.")
    return Path(home) / below_home


def absolute_directory(variable: str) -> Path | None:
    """Return the directory that `variable` names, or None if it is unset or empty.

    Raises:
        UsageError: the path is relative, so its meaning would depend on the working directory.
    """
    text = os.environ.get(variable)
    if not text:
        return None
    if not Path(text).is_absolute():
        raise UsageError(f"{variable} is {text!r}: set it to an absolute path, or unset it.")
    return Path(text)
