# SPDX-License-Identifier: GPL-2.0-only
"""Exit codes: plain ones, and those of `git bisect run`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from soak.model.vocabulary import VerdictWord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# A shell's code for SIGINT; `git bisect run` stops at any code above 127.
INTERRUPTED: Final = 130

_BISECT: Final = "--bisect"
_BISECT_SHORTEST: Final = "--bi"
_SKIP: Final = 125
_USAGE: Final = 2


@dataclass(frozen=True)
class ExitCodes:
    """The codes for each verdict, a kernel that does not boot, a usage error, and a crash."""

    verdicts: Mapping[VerdictWord, int]
    no_boot: int
    usage: int
    crash: int


PLAIN: Final = ExitCodes(
    {VerdictWord.PASS: 0, VerdictWord.FAIL: 1, VerdictWord.UNKNOWN: 3},
    no_boot=_USAGE,
    usage=_USAGE,
    crash=70,  # EX_SOFTWARE of sysexits.h: not a verdict, so the service manager restarts it
)
# Skip a commit without a verdict; a usage error must not look like a bad commit.
BISECT: Final = ExitCodes(
    {VerdictWord.PASS: 0, VerdictWord.FAIL: 1, VerdictWord.UNKNOWN: _SKIP},
    no_boot=_SKIP,
    usage=255,
    crash=255,
)


def is_bisecting(arguments: Sequence[str]) -> bool:
    """Return whether a command line, even an invalid one, contains `--bisect`.

    argparse accepts unambiguous abbreviations.
    """
    options = (word.partition("=")[0] for word in arguments)
    return any(_BISECT.startswith(name) and len(name) >= len(_BISECT_SHORTEST) for name in options)
