# SPDX-License-Identifier: GPL-2.0-only
"""`dax-soak bench`: boots a guest that measures the soak's speed, and prints ratios."""

from __future__ import annotations

import hashlib
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from exporter.collector import LedgerCollector
from exporter.exposition import metrics_page
from soak import run_directory
from soak.errors import UsageError
from soak.journal.events import valid_events
from soak.journal.writer import read_journal
from soak.lab.bench.contenders import LIBRARY
from soak.lab.bench.report import Bench, Scrape, json_report, text_report
from soak.lab.bench.series import MEASURED, Series
from soak.lab.cache import Cache, cache_directory
from soak.lab.host.boot import DEFAULT_KERNEL, boot, find_parts, soak_once
from soak.lab.image.cpio import CpioWriter
from soak.lab.kernels.store import check_kernel
from soak.lab.packages import missing, refuse_without
from soak.lab.progress import Progress
from soak.lab.request import LabRequest, lab_config
from soak.ledger.reader import LedgerReader
from soak.model.exit_codes import INTERRUPTED
from soak.workload.plan import with_overrides

if TYPE_CHECKING:
    import argparse

    from soak.lab.host.boot import Booted

_SOURCE: Final = Path(__file__).with_name("loop.c")
_PROGRAMS: Final = {"gcc": "gcc", "ld": "binutils"}
_HEADERS: Final = {"errno.h": "libc6-dev", "linux/vfio.h": "linux-libc-dev"}
_COMPILE: Final = ("gcc", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC")
_COMPILE_SECONDS: Final = 120
_SCRAPES: Final = 9


def bench(options: argparse.Namespace) -> int:
    """Run the benchmark, print its report and return the exit code.

    Raises:
        UsageError: an option is wrong, a program is missing, or the guest did not finish.
    """
    try:
        return _bench(options)
    except KeyboardInterrupt:
        return INTERRUPTED


def _bench(options: argparse.Namespace) -> int:
    began = time.monotonic()
    config = with_overrides(lab_config(None), duration=options.duration, seed=None, scenario=None)
    # Report mistakes before downloading anything.
    kernel = options.kernel or DEFAULT_KERNEL
    check_kernel(kernel, options.modules)
    refuse_without(missing(_PROGRAMS, _HEADERS), "compile the loop in C")
    progress = Progress()
    cache = Cache(cache_directory())
    compiled = _compiled_layer(cache)
    parts = find_parts(options, kernel, cache, progress)
    request = LabRequest(
        kernel=parts.kernel,
        config=config,
        filesystem=options.filesystem,
        faults=(),
        append=options.append,
        listen="127.0.0.1:0",
        strict=False,
        layers=(*parts.layers, compiled),
        linger_seconds=0.0,
        mirror=False,
        began=began,
        program=("measure",),
        doing="measuring",
    )
    # A benchmark is no run: it never becomes `latest`, and its directory is temporary.
    directory = run_directory.runs_directory() / f".bench-{run_directory.new_run_id()}"
    try:
        work = partial(soak_once, progress=progress)
        booted = boot(
            parts.accelerators, request, directory, options.boot_timeout, work, progress=progress
        )
        if booted.interrupted:
            return INTERRUPTED
        result = _result(booted)
    finally:
        run_directory.discard(directory)
    sys.stdout.write(json_report(result) if options.format == "json" else text_report(result))
    return 0


def _compiled_layer(cache: Cache) -> Path:
    """Return the initramfs layer with the C loop, cached by its source and compiler options.

    Raises:
        UsageError: the compiler failed.
    """
    digest = hashlib.sha256(_SOURCE.read_bytes() + " ".join(_COMPILE).encode())

    def build(directory: Path) -> None:
        library = directory / "loop.so"
        result = subprocess.run(
            [*_COMPILE, "-o", library, _SOURCE],
            check=False,
            capture_output=True,
            text=True,
            timeout=_COMPILE_SECONDS,
        )
        if result.returncode != 0:
            raise UsageError(f"Cannot compile the C loop: {result.stderr.strip()}")
        with (directory / "bench.cpio").open("wb") as out:
            archive = CpioWriter(out)
            archive.file(LIBRARY.lstrip("/"), library.read_bytes(), 0o755)
            archive.close()

    return cache.directory(f"bench/{digest.hexdigest()[:16]}", build) / "bench.cpio"


def _result(booted: Booted) -> Bench:
    """Read the measurements from the guest's journal.

    Raises:
        UsageError: the guest did not finish, or operations of a contender failed.
    """
    directory = booted.request.directory
    for event in valid_events(read_journal(directory / run_directory.JOURNAL)):
        if event["event"] == MEASURED:
            series = [Series.from_fields(fields) for fields in event["series"]]
            short = next(filter(None, (entry.shortfall() for entry in series)), None)
            if short is not None:
                raise UsageError(
                    f"Operations failed ({short}), so speeds cannot be compared: run 'dax-soak lab' "
                    f"with the same options to find the cause."
                )
            return Bench(
                kernel=event["kernel"],
                series=series,
                scrape=_scrape(directory / run_directory.LEDGER),
                mirrored=event["mirrored"],
            )
    raise UsageError(f"The benchmark did not finish: {'; '.join(booted.verdict.reasons)}.")


def _scrape(ledger: Path) -> Scrape:
    """Time a scrape of the exporter, without the network."""
    with LedgerReader.open(ledger) as reader:
        collector = LedgerCollector(lambda: reader)
        taken = []
        for _ in range(_SCRAPES):
            start = time.perf_counter()
            page, _ = metrics_page(collector, "")
            taken.append(time.perf_counter() - start)
    lines = page.decode().splitlines()
    return Scrape(
        series=sum(not line.startswith("#") for line in lines),
        milliseconds=statistics.median(taken) * 1e3,
    )
