# SPDX-License-Identifier: GPL-2.0-only
"""What the exporter's tests share: ledgers with known numbers, and the exporter as a process."""

from __future__ import annotations

import http.client
import os
import select
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client.parser import text_string_to_metric_families

from soak.ledger.schema import soak_layout
from soak.ledger.writer import Ledger
from soak.model.cell import Cell
from soak.model.vocabulary import (
    INVALIDATIONS,
    SHORT_PINS,
    Interface,
    Operation,
    RegionKind,
    Role,
    RunState,
    VerdictWord,
)
from tests.support.program import ROOT
from tests.support.soak import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from soak.ledger.writer import BlockWriter


RUN: dict[str, Any] = {
    "run_id": "run-1",
    "scenario": "default",
    "seed": 7,
    "filesystem": "ext4",
    "regions": [
        {"name": "pmem-a", "kind": "fs-dax", "size": 64 << 20, "files": 4},
        {"name": "pmem-b", "kind": "fs-dax", "size": 32 << 20, "files": 2},
        {"name": "dax0.0", "kind": "device-dax", "size": 128 << 20, "files": 0},
        {"name": "control", "kind": "anonymous", "size": 16 << 20, "files": 0},
    ],
}
KNOWN_ISSUE = "zero-page-leak"
MAP_FS_DAX = Cell(Operation.MAP, RegionKind.FS_DAX, Interface.VFIO_TYPE1)
MAPPER_CELLS = [
    Cell(operation, kind, Interface.VFIO_TYPE1)
    for operation in (Operation.MAP, Operation.UNMAP)
    for kind in RegionKind
]
INVALIDATOR_CELLS = [
    Cell(operation, RegionKind.FS_DAX, Interface.NONE) for operation in (*INVALIDATIONS, Operation.FAULT)
]
HOLDER_CELLS = [Cell(Operation.HOLD, RegionKind.FS_DAX, interface) for interface in SHORT_PINS]
WORKERS = [
    ("mapper-0", Role.MAPPER, MAPPER_CELLS),
    ("mapper-1", Role.MAPPER, MAPPER_CELLS),
    ("invalidator-0", Role.INVALIDATOR, INVALIDATOR_CELLS),
    ("holder-0", Role.HOLDER, HOLDER_CELLS),
]
OFFSET_NS = 1_700_000_000_000_000_000

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def make_ledger(path: Path, *, lab: bool = True, run: Mapping[str, Any] = RUN) -> Ledger:
    """Make a ledger of a default run that is under way; its clock starts at `OFFSET_NS`."""
    ledger = Ledger.create(path, soak_layout(dict(run), WORKERS, [KNOWN_ISSUE], lab=lab))
    start(ledger.block("supervisor"))
    if lab:
        host = ledger.block("host")
        host.set("pid", 10)
        host.set_word("state", RunState.RUNNING)
        host.set_word("verdict", VerdictWord.UNKNOWN)
        host.set("boots", 1)
    path.chmod(0o644)  # an exporter that gave up root's rights finds it also when it comes late
    return ledger


def start(supervisor: BlockWriter) -> None:
    supervisor.set("pid", 20)
    supervisor.set_word("state", RunState.RUNNING)
    supervisor.set_word("verdict", VerdictWord.UNKNOWN)
    supervisor.set("first_start_realtime_ns", OFFSET_NS + 5_000_000_000)
    supervisor.set("boots", 1)
    supervisor.set("heartbeat_ns", 100_000_000_000)
    supervisor.set("realtime_offset_ns", OFFSET_NS)


def parse(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, /, **labels: str) -> float:
    return samples[f"dax_soak_{name}", frozenset(labels.items())]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass(frozen=True)
class Exporter:
    """A running exporter. Its standard error goes to the file `log`."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path

    @property
    def endpoint(self) -> tuple[str, int]:
        host, _, port = self.address.rpartition(":")
        return host.strip("[]"), int(port)

    def ask(
        self, path: str = "/metrics", method: str = "GET", headers: Mapping[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection(*self.endpoint, timeout=DEADLINE)
        try:
            connection.request(method, path, headers=dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def scrape(self) -> Samples:
        return parse(self.ask().text)


@contextmanager
def running_exporter(
    run_directory: Path, *options: str, listen: str = "127.0.0.1:0"
) -> Iterator[Exporter]:
    """Run the exporter as a process of its own, from when it listens."""
    log = run_directory.with_suffix(".log")
    reading, writing = os.pipe()
    command = command_line(run_directory, "--listen", listen, "--ready-fd", str(writing), *options)
    with os.fdopen(reading) as ready, log.open("wb") as errors:
        process = subprocess.Popen(command, cwd=ROOT, pass_fds=[writing], stderr=errors)
        os.close(writing)
        try:
            found, _, _ = select.select([ready], [], [], DEADLINE)
            address = ready.readline().strip() if found else ""
            assert address, log.read_text()
            yield Exporter(process, address, log)
        finally:
            process.kill()
            process.wait()


def command_line(run_directory: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "exporter", "--run-dir", str(run_directory), *options]


def eventually(condition: Callable[[], bool]) -> bool:
    """Wait until the condition holds; False when it does not within the deadline."""
    end = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
