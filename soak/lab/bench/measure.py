# SPDX-License-Identifier: GPL-2.0-only
"""The benchmark in the guest of a lab, on the soak's regions, container, ledger and loop."""

from __future__ import annotations

import contextlib
import ctypes
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from soak.abi.btf import BtfError
from soak.abi.procfs import kernel_release
from soak.abi.vfio import Container
from soak.detectors.leaks.struct_pages import StructPages
from soak.journal.writer import Level
from soak.lab.bench.contenders import LENGTH, LIBRARY, REFERENCES, Contenders, Subject
from soak.lab.bench.series import MEASURED, Series, take_turns
from soak.lab.guest.opened import opened_run
from soak.ledger.schema import SUPERVISOR
from soak.model.kernels import parse_release
from soak.model.vocabulary import RegionKind, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from soak.config.sections import Config
    from soak.lab.bench.series import Prepare, Timed
    from soak.lab.guest.opened import LabPlaces, OpenedRun
    from soak.ledger.writer import Ledger
    from soak.regions.pages import PageSpan
    from soak.supervisor.mirror import Mirror

_SUBJECTS: Final = {
    RegionKind.DEVICE_DAX: "device-dax, map and unmap 2 MiB",
    RegionKind.FS_DAX: "fs-dax, refused map of 2 MiB",
}
_MEMCPY: Final = "memcpy"
_SWEEP: Final = "sweep of the device-dax"
# Approximate time of the slowest contender in one round.
_ROUND_SECONDS: Final = 0.2
_FIRST_CYCLES: Final = 16


def measure(config: Config, places: LabPlaces) -> None:
    """Measure for about the configured duration and write the results to the journal.

    Raises:
        UsageError: the configuration does not fit the guest.
    """
    with opened_run(config, places) as run:
        try:
            series = list(_all_series(run, _heartbeat(run.ledger, run.mirror)))
        except (OSError, BtfError, LookupError) as error:
            run.journal.write("harness.failed", Level.ERROR, summary=f"the benchmark failed: {error}")
            return
        run.journal.write(
            MEASURED,
            kernel=kernel_release(),
            mirrored=run.mirror is not None,
            series=[entry.to_fields() for entry in series],
        )


def _heartbeat(ledger: Ledger, mirror: Mirror | None) -> Callable[[], None]:
    """Return a function that counts a heartbeat for the host."""
    block = ledger.block(SUPERVISOR)

    def beat() -> None:
        block.add("heartbeats", 1)
        if mirror is not None:
            mirror.beat()

    return beat


def _all_series(run: OpenedRun, beat: Callable[[], None]) -> Iterator[Series]:
    each = run.plan.config.run.duration / (len(_SUBJECTS) + 1)
    yield from _loops(run, each, beat)
    regions = run.files.regions
    span = next(region.pages for region in regions if region.kind is RegionKind.DEVICE_DAX)
    if span is not None:
        with StructPages() as pages:
            series = Series(_SWEEP, span.count, [_MEMCPY])
            yield take_turns(series, _sweeps(pages, span), each, beat)


def _loops(run: OpenedRun, seconds: float, beat: Callable[[], None]) -> Iterator[Series]:
    worker = next(worker for worker in run.plan.workers if worker.role is Role.MAPPER)
    block, pause = run.ledger.block(worker.name), run.ledger.block(SUPERVISOR).view("pause")
    release = parse_release(kernel_release())
    library = ctypes.CDLL(LIBRARY)
    # The C loop maps over vfio type1, on the PCI function of the probes.
    container = Container(run.plan.config.vfio.devices[0])
    with contextlib.closing(run.workers.mapper(worker, container)) as mapper:
        for kind, name in _SUBJECTS.items():
            subject = Subject(worker, kind, release)
            contenders = Contenders(
                subject, mapper, container, block=block, pause=pause, library=library
            ).all()
            cycles = _cycles(contenders)
            beat()
            # Each round maps another 2 MiB, so that a leaking unmap does not saturate reference counts.
            offsets = range(0, subject.size - LENGTH + 1, LENGTH)
            turns = {
                contender: partial(_at_round, prepare, offsets, cycles)
                for contender, prepare in contenders.items()
            }
            series = Series(name, cycles * subject.operations, REFERENCES)
            yield take_turns(series, turns, seconds, beat)


def _at_round(
    prepare: Callable[[int, int], Timed], offsets: Sequence[int], cycles: int, number: int
) -> Timed:
    return prepare(offsets[number % len(offsets)], cycles)


def _cycles(contenders: Mapping[str, Callable[[int, int], Timed]]) -> int:
    """Return the number of cycles that the slowest contender does in a round."""
    slowest = 0.0
    for prepare in contenders.values():
        for _ in range(2):  # the first pass warms up
            timed = prepare(0, _FIRST_CYCLES)
            start = time.monotonic()
            timed()
            taken = time.monotonic() - start
        slowest = max(slowest, taken / _FIRST_CYCLES)
    return max(int(_ROUND_SECONDS / slowest), 1)


def _sweeps(pages: StructPages, span: PageSpan) -> Mapping[str, Prepare]:
    """Return contenders that read all struct pages of a span, and a memcpy of as many bytes."""
    size = span.count * pages.layout.size
    source, target = (ctypes.create_string_buffer(size) for _ in range(2))

    def copy() -> int:
        ctypes.memmove(target, source, size)
        return span.count

    def lists() -> int:
        total = largest = 0
        for counts in pages.counts(span):
            total += sum(counts)
            largest = max(largest, *counts)
        return span.count

    def totals() -> int:
        pages.totals(span)
        return span.count

    turns = {_MEMCPY: copy, "added up in Python": lists, "sweep": totals}
    # Both readers must agree before their speeds can be compared.
    listed = [count for piece in pages.counts(span) for count in piece]
    if pages.totals(span) != (sum(listed), max(listed)):
        raise LookupError("sums of reference counts differ from the counts read one by one")
    return {name: partial(_every_round, turn) for name, turn in turns.items()}


def _every_round(turn: Timed, _number: int) -> Timed:
    return turn
