"""The compiler and its headers: what is missing of them is told before anything is begun."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from soak.errors import UsageError
from soak.lab.requirements import install_command

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_HEADER_PLACES: Final = (Path("/usr/include"), Path("/usr/include/x86_64-linux-gnu"))


def missing(programs: Mapping[str, str], headers: Mapping[str, str]) -> list[str]:
    """Return the Debian packages of the programs and of the headers that are not there."""
    return list(
        dict.fromkeys(
            [
                *(package for program, package in programs.items() if not shutil.which(program)),
                *(
                    package
                    for header, package in headers.items()
                    if not any((place / header).exists() for place in _HEADER_PLACES)
                ),
            ]
        )
    )


def refuse_without(packages: Sequence[str], purpose: str) -> None:
    """Refuse to begin what must fail.

    Raises:
        UsageError: there are packages missing; the sentence says how to get them.
    """
    if packages:
        raise UsageError(
            f"To {purpose}, this machine lacks the packages {', '.join(packages)}: run "
            f"'apt-get update && {install_command(list(packages))}' as root, then try again."
        )
