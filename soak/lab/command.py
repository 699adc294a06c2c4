# SPDX-License-Identifier: GPL-2.0-only
"""`dax-soak lab`: from the command line to a booted guest and a verdict."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from soak import run_directory
from soak.config.sections import load_config
from soak.errors import UsageError
from soak.files.printable import printable
from soak.lab.cache import Cache, cache_directory
from soak.lab.guest.faults import parse_fault
from soak.lab.host.boot import DEFAULT_KERNEL, Booted, boot, find_parts, soak_once
from soak.lab.host.boot_error import BootError
from soak.lab.host.script import run_script, script_files
from soak.lab.image.root import package_layer, script_layer
from soak.lab.kernels.store import check_kernel
from soak.lab.progress import Progress
from soak.lab.request import LabRequest, lab_config
from soak.lab.resume import PriorRun, past_run
from soak.model.exit_codes import BISECT, INTERRUPTED, PLAIN
from soak.process.output import put_error
from soak.report.choices import print_choices
from soak.report.text import publish
from soak.workload.plan import make_plan, with_overrides

if TYPE_CHECKING:
    import argparse

    from soak.verdict import Verdict


def lab(options: argparse.Namespace) -> int:
    """Soak in a virtual machine and return the exit code of the verdict.

    Raises:
        UsageError: the input is invalid or a requirement is missing; nothing is left behind.
    """
    try:
        if options.resume is None:
            return _lab(options, None)
        with past_run(options) as past:
            return _lab(options, past)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BootError as error:
        if not (options.bisect and error.started):
            raise
        put_error(f"dax-soak: {printable(str(error))}")
        return BISECT.no_boot


def _lab(options: argparse.Namespace, past: PriorRun | None) -> int:
    began = time.monotonic()
    if past is not None:
        config = past.config
    else:
        config = lab_config(load_config(options.config) if options.config else None)
    config = with_overrides(
        config, duration=options.duration, seed=options.seed, scenario=options.scenario
    )
    plan = make_plan(config)
    if options.print_choices is not None:
        return print_choices(plan, options.print_choices)
    # Refuse mistakes before fetching anything.
    faults = tuple(parse_fault(text) for text in options.fault)
    for name, seconds in faults:
        if seconds >= config.run.duration:
            raise UsageError(
                f"--fault {name}: {seconds:g} s is beyond the run's duration of "
                f"{config.run.duration:g} s. Plant it earlier, as in '--fault {name}:5'."
            )
    kernel = options.kernel or (past.kernel if past else DEFAULT_KERNEL)
    check_kernel(kernel, options.modules)
    if options.run_dir is not None:
        run_directory.check_new(options.run_dir)
    progress = Progress()
    parts = find_parts(options, kernel, Cache(cache_directory()), progress)
    request = LabRequest(
        kernel=parts.kernel,
        config=config,
        filesystem=past.filesystem if past else options.filesystem,
        faults=faults,
        append=options.append,
        listen=options.listen or config.exporter.listen,
        strict=options.strict,
        layers=parts.layers,
        linger_seconds=options.linger,
        mirror=options.mirror_ledger,
        began=began,
        devices=tuple(options.device),
        keep=options.keep or past is not None,
        until_covered=options.until_covered,
        resumed=past is not None,
        directory=past.directory if past else Path(),
        run_id=past.run_id if past else "",
    )
    attempts, seconds = parts.accelerators, options.boot_timeout
    if options.script is not None:
        cache, nvdimm = Cache(cache_directory()), options.nvdimm
        files = script_files(options.script)
        layers = (*parts.layers, script_layer(cache))
        if options.package:
            layers = (*layers, package_layer(cache, options.package))
        return boot(
            attempts,
            replace(request, layers=layers),
            options.run_dir,
            seconds,
            lambda made, how: asyncio.run(run_script(made, how, files, nvdimm)),
            progress=progress,
        )
    work = partial(_soak, progress=progress)
    booted = boot(attempts, request, options.run_dir, seconds, work, progress=progress)
    return _exit_code(booted.verdict, bisect=options.bisect, interrupted=booted.interrupted)


def _soak(request: LabRequest, accelerator: str, progress: Progress) -> Booted:
    booted = soak_once(request, accelerator, progress)
    publish(booted.verdict, request.directory)
    return booted


def _exit_code(verdict: Verdict, *, bisect: bool, interrupted: bool) -> int:
    if not bisect:
        return PLAIN.verdicts[verdict.verdict]
    # Stopping a soak stops the bisection: a partial run judges no commit.
    return INTERRUPTED if interrupted else BISECT.verdicts[verdict.verdict]
