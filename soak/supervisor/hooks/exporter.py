# SPDX-License-Identifier: GPL-2.0-only
"""The exporter process of a run: starts, restarts and ends with it."""

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

# The directory of this program, which may not be on Python's own path.
_PROGRAM: Final = str(Path(__file__).parents[1])
_END_SECONDS: Final = 60.0
_RESTART_SECONDS: Final = 5.0


class ExporterProcess:
    """An exporter that serves a run directory, drops its privileges, and dies with this process."""

    def __init__(self, directory: Path, listen: str, *, bind_seconds: float = 0.0) -> None:
        """Start the exporter, whose imports take a while; `address` makes it listen.

        It retries an address in use for `bind_seconds`.

        Raises:
            UsageError: no temporary file can be made for its output.
        """
        self._directory = directory.absolute()
        self._bind_seconds = bind_seconds
        try:
            # A file, not a pipe, which has no reader while the exporter runs.
            self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise UsageError(
                f"No temporary file can be made ({error.strerror}): set TMPDIR to a writable directory."
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
        """Where it listens. The ledger must exist: the exporter opens it while it is still root.

        Raises:
            UsageError: it cannot listen there.
        """
        with contextlib.suppress(BrokenPipeError):
            os.write(self._go, b"!")
        with os.fdopen(os.dup(self._ready)) as ready:
            address = ready.readline().strip()
        if not address:
            code = self._process.wait(_END_SECONDS)
            self._output.seek(0)
            lines = self._output.read().decode(errors="replace").strip().splitlines()
            raise UsageError(
                lines[-1] if lines else f"The exporter ended before it listened (exit code {code})."
            )
        return address

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def restart(self) -> None:
        """Replace a dead exporter, without waiting until the new one listens."""
        self._process = self._start(self.address)

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()
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
                # By pid: this process may die before the exporter reads its parent's.
                "--listen",
                listen,
                "--die-with-parent",
                str(os.getpid()),
                "--bind-seconds",
                str(self._bind_seconds),
                *(word for name, port in given.items() for word in (name, str(port))),
            ],
            pass_fds=list(given.values()),
            # Not the current directory, where another user could put a module.
            cwd="/",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            stderr=self._output,
            # Ctrl-C must reach the soak alone, which ends the exporter last.
            start_new_session=True,
        )


class ExporterKeeper(Hook):
    """Replaces an exporter that died, and logs that."""

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
            # A shortage of processes or memory must not end a run.
            self._journal.write(
                "exporter.failed",
                Level.WARNING,
                address=self._exporter.address,
                summary=f"the exporter died and cannot be restarted ({error.strerror}); retrying",
            )
            return
        self._journal.write(
            "exporter.restarted",
            Level.WARNING,
            address=self._exporter.address,
            summary="the exporter died and was restarted",
        )
