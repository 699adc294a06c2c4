"""The exporter of a run: a process of its own, started with the run and ended with it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Final

from soak.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

_END_SECONDS: Final = 60.0


class ExporterProcess:
    """Serves a run directory. It gives up its privileges, and dies with this program."""

    def __init__(self, directory: Path, listen: str) -> None:
        """Start the exporter and wait until it listens; `address` is where.

        Raises:
            UsageError: it cannot listen there.
        """
        reader, writer = os.pipe()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "exporter", "--run-dir", str(directory)),
                *("--listen", listen, "--ready-fd", str(writer), "--die-with-parent"),
            ],
            pass_fds=[writer],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            # Ctrl-C in the terminal is for the lab, which ends the exporter when it is done.
            start_new_session=True,
        )
        os.close(writer)
        with os.fdopen(reader) as ready:
            self.address = ready.readline().strip()
        if not self.address:
            _, said = self._process.communicate(timeout=_END_SECONDS)
            raise UsageError(said.decode(errors="replace").strip().splitlines()[-1])

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.communicate(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
