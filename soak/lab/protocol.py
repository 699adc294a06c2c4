# SPDX-License-Identifier: GPL-2.0-only
"""What host and guest of a lab agree on: names of ports and files, and the messages between them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Self

from soak.lab.guest.namespaces import Namespace

# Names of the virtio-serial ports.
JOURNAL_PORT: Final = "dax-soak.journal"
CONTROL_PORT: Final = "dax-soak.control"

# Where the initramfs has what the host tells the guest.
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

# What the host may send, besides the words of soak.control; with `PLANT` goes the name of a fault.
STOP: Final = "stop"
PLANT: Final = "plant:"

ALIVE_SECONDS: Final = 1.0


@dataclass(frozen=True)
class Order:
    """What the host wants of the guest. `config` is a configuration but for what only a guest knows.

    Where `script` is set, the guest runs `SCRIPT_FILE` instead of a soak.
    """

    run_id: str
    config: dict[str, Any]
    filesystem: str
    spaces: list[Namespace]
    deadline_seconds: float
    mirror: bool = False
    # Whether the NVDIMM has its namespaces and its file system from an earlier boot.
    resumed: bool = False
    script: bool = False
    faults: list[list[Any]] = field(default_factory=list)
    # The words of the command that the guest runs: to soak, unless the host wants something else.
    program: list[str] = field(default_factory=lambda: ["run"])

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        table = json.loads(text)
        table["spaces"] = [Namespace(**space) for space in table["spaces"]]
        return cls(**table)
