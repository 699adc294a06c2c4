# SPDX-License-Identifier: GPL-2.0-only
"""Errors that the user can fix."""


class UsageError(Exception):
    """Bad input or a missing prerequisite: the command prints it and exits with code 2.

    The message states what was found, what was expected, and what to do.
    """


class InUseError(UsageError):
    """Another process uses the resource; retry briefly, because that process may be exiting."""


def why(error: OSError) -> str:
    """Return the reason of an error, with a remedy for a lack of permission."""
    reason = error.strerror or str(error)
    if isinstance(error, PermissionError):
        return f"{reason} (run as its owner or as root)"
    return reason
