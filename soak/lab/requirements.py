# SPDX-License-Identifier: GPL-2.0-only
"""Checks the lab's requirements on the host; each missing one with the command that installs it."""

from __future__ import annotations

import os
import platform
import shutil
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from soak.errors import UsageError
from soak.lab.cache import cache_directory
from soak.lab.host.qemu import MEMORY_MIB, accelerators, find_qemu
from soak.lab.image.apt import machine_mirror
from soak.lab.packages import PROGRAMS, TEST_PROGRAMS, install_command, install_missing, missing_packages
from soak.lab.request import lab_config, space_needed
from soak.run_directory import runs_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_CACHE_NEEDED: Final = 1 << 30
_WIDTH: Final = 79


@dataclass(frozen=True)
class Answer:
    """One line of `dax-soak check`: good, or what is missing and its remedy."""

    subject: str
    good: bool
    says: str


def check(*, install: bool, for_tests: bool = False) -> int:
    """Print the state of each requirement; return 0 if the lab can run, else 2."""
    programs = TEST_PROGRAMS if for_tests else PROGRAMS
    if install:
        install_missing(programs)
    answers = list(look(programs))
    for answer in answers:
        first = f"{'ok  ' if answer.good else 'MISS'}  {answer.subject:<12} "
        print(  # noqa: T201 - this is the command's output
            textwrap.fill(
                answer.says,
                _WIDTH,
                initial_indent=first,
                subsequent_indent=" " * len(first),
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
    return 0 if all(answer.good for answer in answers) else 2


def look(programs: Mapping[str, str] = PROGRAMS) -> Iterator[Answer]:
    """Check every requirement of the lab."""
    machine = platform.machine()
    yield Answer("machine", machine == "x86_64", f"{machine} (the lab boots x86_64 guests)")
    missing = missing_packages(programs)
    yield Answer(
        "programs",
        not missing,
        f"missing: {', '.join(missing)}; install them with: {install_command(missing)}"
        if missing
        else ", ".join(programs),
    )
    yield _answer("QEMU", find_qemu)
    yield _answer("packages", lambda: f"from the mirror {machine_mirror().archive}")
    yield Answer("accelerator", good=True, says=accelerators("auto")[1])
    memory = _available_mib()
    yield Answer(
        "memory", memory >= MEMORY_MIB, f"{memory} MiB available, the guest needs {MEMORY_MIB} MiB"
    )
    yield _space("cache", cache_directory, _CACHE_NEEDED)
    yield _space("runs", runs_directory, space_needed(lab_config(None)))


def _answer(subject: str, find: Callable[[], str]) -> Answer:
    try:
        return Answer(subject, good=True, says=find())
    except UsageError as error:
        return Answer(subject, good=False, says=str(error))


def _available_mib() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) >> 10
    return 0


def _space(subject: str, find: Callable[[], Path], needed: int) -> Answer:
    """Check that a directory, or the nearest existing parent, is writable and has the space."""
    try:
        path = find()
    except UsageError as error:
        return Answer(subject, good=False, says=str(error))
    try:
        nearest = next(place for place in (path, *path.parents) if place.is_symlink() or place.exists())
        free = shutil.disk_usage(nearest).free
    except OSError as error:
        return Answer(subject, good=False, says=f"{path} cannot be used: {error.strerror}")
    if not nearest.is_dir():
        return Answer(subject, good=False, says=f"{path} cannot be made: {nearest} is not a directory")
    if not os.access(nearest, os.W_OK | os.X_OK):
        return Answer(subject, good=False, says=f"{path} cannot be written to by this user")
    return Answer(subject, free >= needed, f"{path}: {free >> 20} MiB free of {needed >> 20} needed")
