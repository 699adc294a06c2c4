# SPDX-License-Identifier: GPL-2.0-only
"""QEMU as the host has it: its version, and which accelerator runs a guest."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

from soak.errors import UsageError

BINARY: Final = "qemu-system-x86_64"
PACKAGE: Final = "qemu-system-x86"
# Has QEMU die with the process that starts it.
STARTER: Final = "setpriv"
MEMORY_MIB: Final = 2560
_KVM: Final = Path("/dev/kvm")
_VERSION_SECONDS: Final = 60
_VIRTUALISATION_FLAGS: Final = re.compile(r"^flags\s*:.*\b(vmx|svm)\b", re.MULTILINE)


def find_qemu() -> str:
    """Return QEMU's version.

    Raises:
        UsageError: it is not there, or does not start; the sentence says what to do.
    """
    for program, package in ((BINARY, PACKAGE), (STARTER, "util-linux")):
        if shutil.which(program) is None:
            raise UsageError(
                f"{program} is not installed: 'apt-get install --no-install-recommends {package}' gets "
                f"it."
            )
    try:
        shown = subprocess.run(
            [BINARY, "--version"], check=False, capture_output=True, text=True, timeout=_VERSION_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"{BINARY} cannot be started: {error}. Install {PACKAGE} again.") from None
    if shown.returncode != 0:
        raise UsageError(
            f"'{BINARY} --version' failed (exit code {shown.returncode}): {shown.stderr.strip()}. "
            f"Install {PACKAGE} again."
        )
    match = re.search(r"version (\S+)", shown.stdout)
    return match[1] if match else "of an unknown version"


def accelerators(wanted: str) -> tuple[list[str], str]:
    """Return what to try, in order, and a sentence that says why.

    /dev/kvm alone is no proof: there are hosts on which it opens, answers, and no stock kernel starts.
    """
    if wanted != "auto":
        return [wanted], f"accelerator {wanted}, as asked"
    if not os.access(_KVM, os.R_OK | os.W_OK):
        return ["tcg"], f"emulation, because {_KVM} cannot be used"
    if not _VIRTUALISATION_FLAGS.search(Path("/proc/cpuinfo").read_text()):
        return ["tcg"], f"emulation: {_KVM} is there, but the processor shows neither vmx nor svm"
    return ["kvm", "tcg"], "KVM, with emulation to fall back on if the guest does not start"
