# SPDX-License-Identifier: GPL-2.0-only
"""What exit codes say: to people and scripts, and to `git bisect run`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from soak.model.vocabulary import VerdictWord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# What a shell makes of SIGINT; `git bisect run` stops at all codes above 127.
INTERRUPTED: Final = 130

_BISECT: Final = "--bisect"
_BISECT_SHORTEST: Final = "--bi"
_SKIP: Final = 125
_USAGE: Final = 2


@dataclass(frozen=True)
class ExitCodes:
    """The codes of a command: for each verdict, a kernel that does not boot, a mistake, a crash."""

    verdicts: Mapping[VerdictWord, int]
    no_boot: int
    usage: int
    crash: int


PLAIN: Final = ExitCodes(
    {VerdictWord.PASS: 0, VerdictWord.FAIL: 1, VerdictWord.UNKNOWN: 3},
    no_boot=_USAGE,
    usage=_USAGE,
    crash=70,  # EX_SOFTWARE of sysexits.h: no verdict, so that a service manager starts it again
)
# A commit that cannot be judged is skipped; a mistake must not look like a bad commit.
BISECT: Final = ExitCodes(
    {VerdictWord.PASS: 0, VerdictWord.FAIL: 1, VerdictWord.UNKNOWN: _SKIP},
    no_boot=_SKIP,
    usage=255,
    crash=255,
)


def is_bisecting(arguments: Sequence[str]) -> bool:
    """Say whether a command line asks for a bisection's exit codes, even one that cannot be parsed.

    argparse takes an option's beginning for the whole, where it means no other.
    """
    options = (word.partition("=")[0] for word in arguments)
    return any(_BISECT.startswith(name) and len(name) >= len(_BISECT_SHORTEST) for name in options)
