# SPDX-License-Identifier: GPL-2.0-only
"""Opens the ledger of a run directory, and reopens it when it is replaced."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from soak.ledger.reader import LedgerReader
from soak.log import bind_log

LEDGER_NAME: Final = "ledger"


class LedgerSource:
    """The ledger of a run directory, given by its descriptor. Not thread-safe.

    The name may contain a symbolic link: each lookup follows it again, and so finds a newer run.
    """

    def __init__(self, directory: int, name: str = LEDGER_NAME) -> None:
        self._directory = directory
        self._name = name
        self._reader: LedgerReader | None = None
        self._identity: tuple[int, int] | None = None

    def reader(self) -> LedgerReader:
        """Return a reader of the directory's current ledger.

        An open ledger stays readable without its name or the permission to look it up.

        Raises:
            LedgerError: the file is not, or not yet, a ledger.
            OSError: the file does not exist or cannot be opened.
        """
        if self._reader is not None and self._looked_up() in {None, self._identity}:
            return self._reader
        self.close()
        # The file may be replaced between stat and open. The stored identity is then the older one, and
        # the next scrape reopens the ledger.
        identity = self._looked_up()
        self._reader = LedgerReader.open(Path(self._name), self._directory)
        self._identity = identity
        bind_log(run=self._reader.layout.run.get("run_id"))
        return self._reader

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _looked_up(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._name, dir_fd=self._directory)
        except OSError:
            return None  # keep the current reader, or let open() raise
        return found.st_dev, found.st_ino
