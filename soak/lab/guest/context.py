# SPDX-License-Identifier: GPL-2.0-only
"""The context of a planted fault."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from soak.lab.guest.namespaces import FIRST_MOUNT

if TYPE_CHECKING:
    from pathlib import Path


class GuestContext:
    """The guest's devices, processes and ledger, for faults."""

    def __init__(self, found: dict[str, dict[str, Any]], ledger: Path, supervisor_pid: int) -> None:
        device = next((entry for entry in found.values() if "alignment" in entry), {})
        self.device_dax = str(device.get("path", ""))
        self.alignment = int(device.get("alignment", 0))
        self.supervisor_pid = supervisor_pid
        self.fs_dax = FIRST_MOUNT
        self._ledger = ledger
        self._kept: list[object] = []

    @property
    def fs_dax_files(self) -> Path:
        return next(path for path in self.fs_dax.iterdir() if (path / "file-00").exists())

    def worker_pid(self, name: str) -> int:
        """Return the pid of a worker, from the ledger."""
        from soak.ledger.writer import Ledger  # noqa: PLC0415 - only a fault needs it here

        return Ledger.open(self._ledger).block(name).get("pid")

    def workers_started(self) -> bool:
        from soak.ledger.writer import Ledger  # noqa: PLC0415 - only a fault needs it here

        block = Ledger.open(self._ledger).block("supervisor")
        return block.get("state") == block.block.fields["state"].values.index("running")

    def keep(self, thing: object) -> None:
        """Keep a reference until the machine ends."""
        self._kept.append(thing)
