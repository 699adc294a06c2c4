"""`dax-soak lab`: from the command line to a booted guest and a verdict."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.server import DEFAULT_LISTEN, parse_listen
from soak.config import load_config
from soak.exit_codes import BISECT, INTERRUPTED, PLAIN
from soak.lab import rundir
from soak.lab.boot import boot, find_parts
from soak.lab.cache import Cache, cache_directory
from soak.lab.faults import parse_fault
from soak.lab.host import BootError
from soak.lab.kernels import check_kernel
from soak.lab.progress import Progress
from soak.lab.request import LabRequest, lab_config
from soak.plan import make_plan, with_overrides
from soak.report.text import text_report

if TYPE_CHECKING:
    import argparse

    from soak.lab.boot import Attempt
    from soak.verdict import Verdict


def lab(options: argparse.Namespace) -> int:
    """Soak in a virtual machine and return the exit code of the verdict.

    Raises:
        UsageError: something is wrong or missing; nothing is left behind.
    """
    try:
        return _lab(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BootError as error:
        if not (options.bisect and error.started):
            raise
        sys.stderr.write(f"dax-soak: {error}\n")
        return BISECT.no_boot


def _lab(options: argparse.Namespace) -> int:
    began = time.monotonic()
    config = load_config(options.config) if options.config else None
    config = with_overrides(
        lab_config(config), duration=options.duration, seed=options.seed, scenario=options.scenario
    )
    plan = make_plan(config)
    if options.print_choices is not None:
        from soak.cli import print_choices  # noqa: PLC0415 - the command line imports this module

        return print_choices(plan, options.print_choices)
    faults = tuple(parse_fault(text) for text in options.fault)
    listen = options.listen or DEFAULT_LISTEN
    parse_listen(listen)
    # Mistakes are told before anything is fetched.
    check_kernel(options.kernel, options.modules)
    if options.run_dir is not None:
        rundir.check_new(options.run_dir)
    progress = Progress()
    parts = find_parts(options, Cache(cache_directory()), progress)

    def request_for(attempt: Attempt) -> LabRequest:
        return LabRequest(
            kernel=parts.kernel,
            config=config,
            filesystem=options.filesystem,
            faults=faults,
            append=options.append,
            listen=listen,
            strict=options.strict,
            directory=attempt.directory,
            run_id=attempt.run_id,
            layers=parts.layers,
            boot_seconds=attempt.boot_seconds,
            linger_seconds=options.linger,
            mirror=options.mirror_ledger,
            began=began,
        )

    booted = boot(parts, options.run_dir, options.boot_timeout, request_for, progress)
    _tell(booted.verdict, booted.request)
    return _exit_code(booted.verdict, bisect=options.bisect, interrupted=booted.interrupted)


def _exit_code(verdict: Verdict, *, bisect: bool, interrupted: bool) -> int:
    if not bisect:
        return PLAIN.verdicts[verdict.verdict]
    # Whoever stops a soak stops the bisection: what was seen so far judges no commit.
    return INTERRUPTED if interrupted else BISECT.verdicts[verdict.verdict]


def _tell(verdict: Verdict, request: LabRequest) -> None:
    report = text_report(verdict, request.directory)
    (request.directory / rundir.REPORT).write_text(report)
    try:
        sys.stdout.write(report)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has seen enough; the exit code still tells the verdict.
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
