# SPDX-License-Identifier: GPL-2.0-only
"""Programs and headers that the lab needs on the host, and their Debian packages."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from soak.errors import UsageError
from soak.lab.host.qemu import BINARY, PACKAGE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_INSTALL_SECONDS: Final = 1800
# Programs that the lab starts, and their Debian packages.
PROGRAMS: Final = {BINARY: PACKAGE, "setpriv": "util-linux", "dpkg-deb": "dpkg", "apt-get": "apt"}
# Tests also check the systemd units.
TEST_PROGRAMS: Final = {**PROGRAMS, "systemd-analyze": "systemd"}
_HEADER_PLACES: Final = (Path("/usr/include"), Path("/usr/include/x86_64-linux-gnu"))


def missing_packages(programs: Mapping[str, str] = PROGRAMS) -> list[str]:
    """Return the Debian packages of missing programs."""
    return [package for program, package in programs.items() if shutil.which(program) is None]


def install_command(packages: list[str]) -> str:
    return f"apt-get install --yes --no-install-recommends {' '.join(packages)}"


def install_missing(programs: Mapping[str, str] = PROGRAMS) -> None:
    """Install missing packages, as root.

    Raises:
        UsageError: this is not root, or apt failed; the message has the command.
    """
    missing = missing_packages(programs)
    if not missing:
        return
    command = install_command(missing)
    if os.geteuid() != 0:
        raise UsageError(
            f"This machine lacks the packages {', '.join(missing)}: run 'apt-get update && {command}' "
            f"as root, then try again."
        )
    print(f"Installing {', '.join(missing)}", flush=True)  # noqa: T201 - progress for the user
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["apt-get", "update", "-qq"], command.split()):
        try:
            result = subprocess.run(
                words,
                check=False,
                capture_output=True,
                text=True,
                errors="replace",
                env=environment,
                timeout=_INSTALL_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UsageError(f"'{' '.join(words)}' failed: {error}.") from None
        if result.returncode != 0:
            raise UsageError(f"'{' '.join(words)}' failed: {result.stderr.strip()}")


def missing(programs: Mapping[str, str], headers: Mapping[str, str]) -> list[str]:
    """Return the Debian packages of missing programs and headers."""
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
    """Refuse `purpose` if packages are missing.

    Raises:
        UsageError: with the command that installs them.
    """
    if packages:
        raise UsageError(
            f"To {purpose}, this machine lacks the packages {', '.join(packages)}: run "
            f"'apt-get update && {install_command(list(packages))}' as root, then try again."
        )
