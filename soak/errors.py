# SPDX-License-Identifier: GPL-2.0-only
"""What can go wrong on the user's side, told in one sentence."""


class UsageError(Exception):
    """Bad input or a missing prerequisite: printed as one sentence, exit code 2.

    The sentence names what was given, what was expected and what to do about it.
    """


class InUseError(UsageError):
    """Somebody else uses it: a process that is just ending may let go of it in a moment."""


def why(error: OSError) -> str:
    """Return the reason of an error for a sentence, and what to do where that is always the same."""
    reason = error.strerror or str(error)
    if isinstance(error, PermissionError):
        return f"{reason} (be the user whose it is, or root)"
    return reason
