# SPDX-License-Identifier: GPL-2.0-only
"""One moment of a ledger, in the units and by the labels that metrics have."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from soak.ledger.layout import LedgerError
from soak.ledger.recorder import in_flight
from soak.ledger.schema import HOST, SUPERVISOR, WORKER
from soak.model.cell import Cell
from soak.model.vocabulary import RegionKind, RunState, VerdictWord, WorkerState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from soak.ledger.reader import BlockSnapshot, LedgerReader

NANOSECONDS: Final = 1_000_000_000
HEARTBEAT_LIMIT_NS: Final = 15 * NANOSECONDS
_ALIVE: Final = frozenset({RunState.PREPARING, RunState.RUNNING, RunState.PAUSED})


@dataclass(frozen=True)
class Region:
    """A region as the header lists it; `size` is in bytes."""

    name: str
    kind: RegionKind
    size: int


@dataclass(frozen=True)
class InFlight:
    """An operation that has begun and has not ended; `start_ns` is monotonic."""

    cell: Cell
    start_ns: int


@dataclass(frozen=True)
class Worker:
    """A worker's block, and the state that it is in, seen by itself and by the supervisor."""

    block: BlockSnapshot
    role: str
    state: str

    @cached_property
    def name(self) -> str:
        return self.block.block.name

    @cached_property
    def cells(self) -> list[Cell]:
        """What it counts, in the order of its rows."""
        return [Cell.parse(label) for label in self.block.named_rows("counts")]

    @property
    def in_flight(self) -> InFlight | None:
        """The newest line of its recorder, if that operation has not ended."""
        # The last line of a worker that was killed stays; the call that it names is over.
        if self.state == WorkerState.DEAD:
            return None
        line = in_flight(self.block.get, self.block.flat)
        if line is None or line["end_ns"]:
            return None
        return InFlight(self.cells[line["cell"]], line["start_ns"])


class Snapshot:
    """One moment of a ledger: each block is read once, in a single call, when it is first needed.

    A damaged ledger makes any part of it raise one of `UNREADABLE` in `soak.ledger.layout`.
    """

    def __init__(self, reader: LedgerReader, now_ns: int) -> None:
        """`now_ns` is the wall clock, in nanoseconds since the epoch."""
        self._reader = reader
        self._now_ns = now_ns

    @property
    def run(self) -> Mapping[str, object]:
        return self._reader.layout.run

    @property
    def bucket_bounds_ns(self) -> Sequence[int]:
        return self._reader.layout.run["bucket_bounds_ns"]  # type: ignore[no-any-return]  # a ledger's facts are JSON, which has no types here

    @cached_property
    def supervisor(self) -> BlockSnapshot:
        return self._reader.block(SUPERVISOR)

    @cached_property
    def host(self) -> BlockSnapshot | None:
        """The block of the lab's host; None on a machine that soaks itself."""
        return next(iter(self._reader.blocks(HOST)), None)

    @cached_property
    def workers(self) -> list[Worker]:
        dead = self.supervisor.named("dead")
        return [
            Worker(
                block,
                str(block.block.labels["role"]),
                WorkerState.DEAD if dead[block.block.name] else block.word("state"),
            )
            for block in self._reader.blocks(WORKER)
        ]

    @cached_property
    def cells(self) -> list[Cell]:
        """What any worker counts, in the order of the header."""
        return list(dict.fromkeys(cell for worker in self.workers for cell in worker.cells))

    @cached_property
    def regions(self) -> list[Region]:
        return [
            Region(str(region["name"]), RegionKind(region["kind"]), int(region["size"]))
            for region in self._reader.layout.run["regions"]
        ]

    def group(self, name: str) -> dict[str, int]:
        """Return a group of the supervisor by the names of its words.

        Raises:
            LedgerError: the supervisor was stopped while it wrote the group.
        """
        words = self.supervisor.group(name)
        if words is None:
            raise LedgerError(f"its writer was stopped in the middle of {name!r}")
        _, *columns = self.supervisor.named(name)  # the first is the sequence number
        return dict(zip(columns, words, strict=True))

    def by_kind(self, values: Mapping[str, int]) -> dict[RegionKind, list[int]]:
        """Sort values by region name into lists by kind of region."""
        sorted_values: dict[RegionKind, list[int]] = {region.kind: [] for region in self.regions}
        for region in self.regions:
            sorted_values[region.kind].append(values[region.name])
        return sorted_values

    def epoch_seconds(self, monotonic_ns: int) -> float:
        """Return seconds since the epoch; 0, which stands for never, stays 0."""
        if not monotonic_ns:
            return 0.0
        return (monotonic_ns + self.supervisor.get("realtime_offset_ns")) / NANOSECONDS

    @property
    def active(self) -> bool:
        """Whether the run goes on: nobody has said that it ended, and its heart beats."""
        writers = [self.supervisor] if self.host is None else [self.supervisor, self.host]
        return (
            all(writer.word("state") in _ALIVE for writer in writers)
            and self._now_ns - self.beat_ns < HEARTBEAT_LIMIT_NS
        )

    @property
    def beat_ns(self) -> int:
        """The time of day of the last heartbeat: by the host's clock, where a guest has another."""
        seen = "guest_heartbeat_realtime_ns"
        # A ledger of an earlier version has none of it.
        if self.host is not None and seen in self.host.block.fields and self.host.get(seen):
            return self.host.get(seen)
        beat = self.supervisor.get("heartbeat_ns")
        return beat and beat + self.supervisor.get("realtime_offset_ns")

    @property
    def verdict(self) -> str:
        """The word of whoever outlives the others: the host where there is one."""
        judge = self.supervisor if self.host is None else self.host
        # Until its writer has begun, a block is all zeros, and those are a word too.
        return judge.word("verdict") if judge.get("pid") else VerdictWord.UNKNOWN
