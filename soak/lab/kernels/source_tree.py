# SPDX-License-Identifier: GPL-2.0-only
"""Configures and compiles a kernel's source tree, and shows the progress."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from typing import TYPE_CHECKING, BinaryIO, Final

from soak.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from soak.lab.progress import Progress

_LOOK_SECONDS: Final = 0.5
_END_SECONDS: Final = 10.0
_SHOWN_LINES: Final = 20
# A line such as `  CC [M]  fs/ext4/inode.o`.
_STEP: Final = re.compile(rb"  [A-Z][A-Z0-9_]*(?: \[\w+\])? +(\S+)$")
# Other variables of a shell or an outer `make` could change the build: ARCH, CROSS_COMPILE, KCONFIG_*,
# MAKEFLAGS.
_KEPT_VARIABLES: Final = ("PATH", "HOME", "TMPDIR")
_OWN_VARIABLES: Final = {"LC_ALL": "C", "KBUILD_BUILD_USER": "dax-soak", "KBUILD_BUILD_HOST": "dax-soak"}


class SourceTree:
    """Runs `make` in `directory`, with a log beside it. `name` is the tree's name in messages."""

    def __init__(self, name: str, directory: Path, progress: Progress) -> None:
        self._name = name
        self._directory = directory
        self._progress = progress
        self._log = directory.with_name(f"{directory.name}.log")
        self._began = time.monotonic()
        self._objects = 0
        self.configuration = directory / ".config"

    def configure(self, fragment: Path) -> list[str]:
        """Merge `fragment` into tinyconfig; return the lines that the tree ignored.

        Raises:
            UsageError: a step failed; the message has the end of the log.
        """
        self._run("configuring", "make", "tinyconfig")
        merge = "scripts/kconfig/merge_config.sh"
        self._run("configuring", merge, "-m", ".config", str(fragment.absolute()))
        self._run("configuring", "make", "olddefconfig")
        got = set(self.configuration.read_text().splitlines())
        return [line for line in _wanted(fragment.read_text()) if not _is_set(line, got)]

    def compile(self, target: str) -> Path:
        """Make `target`, relative to the tree, and return its path.

        Raises:
            UsageError: a step failed; the message has the end of the log.
        """
        jobs = len(os.sched_getaffinity(0))
        self._run("compiling", "make", f"-j{jobs}", target.rpartition("/")[2])
        return self._directory / target

    def _run(self, doing: str, *words: str) -> None:
        """Run one step and show its progress; an exception, Ctrl-C included, kills the whole step."""
        with self._log.open("wb") as log, self._log.open("rb") as output:
            process = subprocess.Popen(
                # The build must end if this process is killed.
                ["setpriv", "--pdeathsig", "TERM", "--", "nice", *words],
                cwd=self._directory,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C must reach this process alone, which ends the build and removes it.
                start_new_session=True,
            )
            try:
                self._watch(doing, process, output)
            except BaseException:
                _end_group(process)
                raise
        if process.returncode != 0:
            raise UsageError(
                f"{self._name} could not be built: '{' '.join(words)}' "
                f"{_how_it_ended(process.returncode)}. The end of its log:\n{self._log_tail()}"
            )

    def _watch(self, doing: str, process: subprocess.Popen[bytes], output: BinaryIO) -> None:
        unfinished, last = b"", ""
        while not _has_ended(process):
            *lines, unfinished = (unfinished + output.read()).split(b"\n")
            steps = [
                # `make` prints absolute paths for tools, relative ones for all other files.
                match[1].decode(errors="replace").removeprefix(f"{self._directory}/")
                for line in lines
                if (match := _STEP.match(line))
            ]
            self._objects += sum(step.endswith(".o") for step in steps)
            last = f" {steps[-1]}" if steps else last
            elapsed = time.monotonic() - self._began
            self._progress.tick(f"{elapsed:6.1f} s  {self._objects:,} objects so far, {doing}{last}")

    def _log_tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join([line for line in lines if line.strip()][-_SHOWN_LINES:])


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {**kept, **_OWN_VARIABLES}


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(_LOOK_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a step with all its compilers, and wait until they have ended."""
    deadline = time.monotonic() + _END_SECONDS
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, signal.SIGKILL)
            process.poll()
            time.sleep(0.02)


def _how_it_ended(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _wanted(fragment: str) -> list[str]:
    return [line for line in fragment.splitlines() if line and not line.startswith("#")]


def _is_set(line: str, got: set[str]) -> bool:
    """Return whether a configuration has a line of a fragment; there, a disabled option is a comment."""
    name, _, value = line.partition("=")
    if value == "n":
        return not any(other.startswith(f"{name}=") for other in got)
    return line in got
