# SPDX-License-Identifier: GPL-2.0-only
"""The exporter of a run: a process of its own, started with the run and ended with it."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from soak.errors import UsageError
from soak.journal.writer import Level
from soak.supervisor.hooks.base import Hook

if TYPE_CHECKING:
    from soak.journal.writer import Journal

# Where this program is, which may not be where Python looks by itself.
_PROGRAM: Final = str(Path(__file__).parents[1])
_END_SECONDS: Final = 60.0
_RESTART_SECONDS: Final = 5.0


class ExporterProcess:
    """Serves a run directory. It gives up its privileges, and dies with this program."""

    def __init__(self, directory: Path, listen: str, *, bind_seconds: float = 0.0) -> None:
        """Start the exporter, whose imports take a while; `address` has it listen.

        An address that is in use is tried again for `bind_seconds`.

        Raises:
            UsageError: there is no place for what it says.
        """
        self._directory = directory.absolute()
        self._bind_seconds = bind_seconds
        try:
            # A file, not a pipe: nobody reads it while the exporter runs.
            self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise UsageError(
                f"There is no place for temporary files ({error.strerror}): have TMPDIR name a directory "
                f"that may be written to."
            ) from None
        self._ready, ready = os.pipe()
        go, self._go = os.pipe()
        try:
            self._process = self._start(listen, ready, go)
        finally:
            os.close(ready)
            os.close(go)

    @functools.cached_property
    def address(self) -> str:
        """Where it listens. The ledger must be there: the exporter opens it while it is still root.

        Raises:
            UsageError: it cannot listen there.
        """
        with contextlib.suppress(BrokenPipeError):
            os.write(self._go, b"!")
        with os.fdopen(os.dup(self._ready)) as ready:
            address = ready.readline().strip()
        if not address:
            code = self._process.wait(_END_SECONDS)
            self._said.seek(0)
            said = self._said.read().decode(errors="replace").strip().splitlines()
            raise UsageError(
                said[-1] if said else f"The exporter ended before it listened (exit code {code})."
            )
        return address

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it has died."""
        return self._process.poll() is not None

    def restart(self) -> None:
        """Start another in the place of one that died; nobody waits until it listens."""
        self._process = self._start(self.address)

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()
        os.close(self._ready)
        os.close(self._go)

    def _start(
        self, listen: str, ready: int | None = None, go: int | None = None
    ) -> subprocess.Popen[bytes]:
        ports = {"--ready-fd": ready, "--wait-fd": go}
        paths = filter(None, (_PROGRAM, os.environ.get("PYTHONPATH")))
        given = {name: port for name, port in ports.items() if port is not None}
        return subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "exporter",
                "--run-dir",
                str(self._directory),
                # By its number: it may be killed before the exporter asks who its parent is.
                "--listen",
                listen,
                "--die-with-parent",
                str(os.getpid()),
                "--bind-seconds",
                str(self._bind_seconds),
                *(word for name, port in given.items() for word in (name, str(port))),
            ],
            pass_fds=list(given.values()),
            # Not the directory in which root happens to be: a module there is somebody else's.
            cwd="/",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            stderr=self._said,
            # Ctrl-C in the terminal is for the soak, which ends the exporter when it is done.
            start_new_session=True,
        )


class ExporterKeeper(Hook):
    """Puts another exporter in the place of one that died, and says so."""

    def __init__(self, exporter: ExporterProcess, journal: Journal) -> None:
        self._exporter, self._journal = exporter, journal
        self._next = 0.0

    def beat(self) -> None:
        if not self._exporter.ended or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _RESTART_SECONDS
        try:
            self._exporter.restart()
        except OSError as error:
            # A machine that is short of processes or memory just now is no reason to end a run.
            self._journal.write(
                "exporter.failed",
                Level.WARNING,
                address=self._exporter.address,
                summary=f"the exporter has died, and no other can be started yet: {error.strerror}",
            )
            return
        self._journal.write(
            "exporter.restarted",
            Level.WARNING,
            address=self._exporter.address,
            summary="the exporter had died: another one serves now",
        )
