# SPDX-License-Identifier: GPL-2.0-only
"""Finds the ledger in a run directory, also one that comes later or is replaced."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from soak.ledger.reader import LedgerReader
from soak.log import bind_log

LEDGER_NAME: Final = "ledger"


class LedgerSource:
    """The ledger of a run directory, given by its descriptor. Used by one thread at a time.

    Its name may lead through a link: it is looked up again each time, so another run is found when
    the link is turned to that.
    """

    def __init__(self, directory: int, name: str = LEDGER_NAME) -> None:
        self._directory = directory
        self._name = name
        self._reader: LedgerReader | None = None
        self._identity: tuple[int, int] | None = None

    def reader(self) -> LedgerReader:
        """Return a reader of the ledger that the directory holds now.

        A ledger that was opened stays readable when its name, or the right to look it up, is gone.

        Raises:
            LedgerError: the file is no ledger (or none yet).
            OSError: there is no such file, or it cannot be opened.
        """
        if self._reader is not None and self._looked_up() in {None, self._identity}:
            return self._reader
        self.close()
        # A name that is looked up twice can be another file the second time; the identity that is
        # kept is then the older one, and the next scrape looks again.
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
            return None  # the open that follows, or the reader at hand, says more
        return found.st_dev, found.st_ino
