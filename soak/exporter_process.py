"""The exporter of a run: a process of its own, started with the run and ended with it."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Final

from soak.companion import Companion
from soak.errors import UsageError
from soak.journal import Level

if TYPE_CHECKING:
    from pathlib import Path

    from soak.journal import Journal

_END_SECONDS: Final = 60.0
_RESTART_SECONDS: Final = 5.0


class ExporterProcess:
    """Serves a run directory. It gives up its privileges, and dies with this program."""

    def __init__(self, directory: Path, listen: str) -> None:
        """Start the exporter, which takes a while; who asks for `address` waits until it listens."""
        self._directory = directory
        # A file, not a pipe: nobody reads it while the exporter runs.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._ready, writer = os.pipe()
        self._process = self._start(listen, writer)
        os.close(writer)

    @functools.cached_property
    def address(self) -> str:
        """Where it listens.

        Raises:
            UsageError: it cannot listen there.
        """
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
        self._process = self._start(self.address, None)

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()
        os.close(self._ready)

    def _start(self, listen: str, ready: int | None) -> subprocess.Popen[bytes]:
        words = [
            *(sys.executable, "-m", "exporter", "--run-dir", str(self._directory)),
            *("--listen", listen, "--die-with-parent"),
        ]
        return subprocess.Popen(
            words if ready is None else [*words, "--ready-fd", str(ready)],
            pass_fds=[] if ready is None else [ready],
            stdin=subprocess.DEVNULL,
            stderr=self._said,
            # Ctrl-C in the terminal is for the soak, which ends the exporter when it is done.
            start_new_session=True,
        )


class ExporterKeeper(Companion):
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
                "exporter.failed", Level.WARNING, address=self._exporter.address,
                summary=f"the exporter has died, and no other can be started yet: {error.strerror}",
            )  # fmt: skip
            return
        self._journal.write(
            "exporter.restarted", Level.WARNING, address=self._exporter.address,
            summary="the exporter had died: another one serves now",
        )  # fmt: skip
