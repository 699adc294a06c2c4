# SPDX-License-Identifier: GPL-2.0-only
"""The protocol between the lab's host and guest: port names, file names and messages."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Self

from soak.lab.guest.namespaces import Namespace

# Names of the virtio-serial ports.
JOURNAL_PORT: Final = "dax-soak.journal"
CONTROL_PORT: Final = "dax-soak.control"

# Files that the host puts into the initramfs.
ORDER_FILE: Final = "etc/dax-soak/order.json"
SCRIPT_FILE: Final = "etc/dax-soak/script.py"
SCRIPT_MODULES: Final = "etc/dax-soak/modules"

# Messages of the guest over the control port, as the "message" of a JSON object.
BOOTED: Final = "booted"
READY: Final = "ready"
ALIVE: Final = "alive"
FAULT: Final = "fault"
UNPLANTED: Final = "unplanted"
FAILED: Final = "failed"
EXITED: Final = "exited"
ANSWER: Final = "answer"

# Words of the host, besides those of soak.supervisor.control; the name of a fault follows `PLANT`.
STOP: Final = "stop"
PLANT: Final = "plant:"

ALIVE_SECONDS: Final = 1.0


@dataclass(frozen=True)
class Order:
    """The host's order to the guest. `config` lacks the paths that only the guest knows.

    With `script` the guest runs `SCRIPT_FILE` instead of a soak.
    """

    run_id: str
    config: dict[str, Any]
    filesystem: str
    spaces: list[Namespace]
    deadline_seconds: float
    mirror: bool = False
    # Reuse the namespaces and file systems of an earlier boot.
    resumed: bool = False
    script: bool = False
    faults: list[list[Any]] = field(default_factory=list)
    # The guest's command.
    program: list[str] = field(default_factory=lambda: ["run"])

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        table = json.loads(text)
        table["spaces"] = [Namespace(**space) for space in table["spaces"]]
        return cls(**table)
