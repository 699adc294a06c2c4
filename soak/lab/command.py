"""`dax-soak lab`: from the command line to a booted guest and a verdict."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from exporter.server import parse_listen
from soak import rundir
from soak.config import load_config
from soak.errors import UsageError
from soak.exit_codes import BISECT, INTERRUPTED, PLAIN
from soak.lab.cache import Cache, cache_directory
from soak.lab.faults import parse_fault
from soak.lab.host import BootError, LabRun
from soak.lab.image import GuestRoot, program_layers
from soak.lab.kernels import KernelStore, check_kernel
from soak.lab.progress import Progress
from soak.lab.qemu import accelerators, find_qemu
from soak.lab.request import LabRequest, lab_config, space_needed
from soak.lab.resume import Past, past_run
from soak.lab.script import run_script
from soak.plan import make_plan, with_overrides
from soak.report.text import publish

if TYPE_CHECKING:
    import argparse

    from soak.config import Config
    from soak.verdict import Verdict

_QUICK_BOOT_SECONDS: Final = 60.0
DEFAULT_KERNEL: Final = "debian:6.1"


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
    past = past_run(options) if options.resume else None
    config = (
        past.config if past else lab_config(load_config(options.config) if options.config else None)
    )
    config = with_overrides(
        config, duration=options.duration, seed=options.seed, scenario=options.scenario
    )
    plan = make_plan(config)
    if options.print_choices is not None:
        from soak.cli import print_choices  # noqa: PLC0415 - the command line imports this module

        return print_choices(plan, options.print_choices)
    progress = Progress()
    attempts, request = _prepare(options, config, past, progress)
    return _boot(options, attempts, request, progress)


def _boot(
    options: argparse.Namespace, attempts: list[str], request: LabRequest, progress: Progress
) -> int:
    """Try the accelerators until a guest comes up; a run that never was leaves nothing behind."""
    retried = len(attempts) > 1
    while True:
        accelerator = attempts.pop(0)
        request = replace(request, boot_seconds=_boot_seconds(options.boot_timeout, attempts))
        if not request.resumed:
            run_id = rundir.new_run_id()
            space = space_needed(request.config)
            directory = rundir.make_run_directory(options.run_dir, run_id, space)
            request = replace(request, directory=directory, run_id=run_id)
        progress.say(
            f"Linux {request.kernel.release} ({request.kernel.name}) under {accelerator}, run "
            f"{request.run_id}"
        )
        run = LabRun(request, accelerator, progress)
        try:
            if request.script is not None:
                code = asyncio.run(run_script(request, accelerator))
                rundir.discard(request.directory)
                return code
            verdict = asyncio.run(run.run())
        except UsageError as error:
            if not request.resumed:
                rundir.discard(request.directory)
            if not isinstance(error, BootError):
                raise
            if run.interrupted:
                return INTERRUPTED
            # QEMU 7.2's emulation with a thread to a processor now and then runs code that the kernel
            # is just patching, and the guest dies. A kernel at fault dies again.
            attempts += [accelerator] * (error.crashed and not attempts and not retried)
            retried = True
            if not attempts:
                raise
            progress.say(f"{error}\nTrying once more, under {attempts[0]}.")
        else:
            publish(verdict, request.directory)
            return _exit_code(verdict, bisect=options.bisect, interrupted=run.interrupted)


def _prepare(
    options: argparse.Namespace, config: Config, past: Past | None, progress: Progress
) -> tuple[list[str], LabRequest]:
    """Find and fetch all that a boot needs; return the accelerators to try, and what to boot.

    Mistakes are told before anything is fetched.
    """
    began = time.monotonic()
    faults = tuple(parse_fault(text) for text in options.fault)
    listen = options.listen or config.exporter.listen
    parse_listen(listen)
    wanted = options.kernel or (past.kernel if past else DEFAULT_KERNEL)
    check_kernel(wanted, options.modules)
    if options.run_dir is not None:
        rundir.check_new(options.run_dir)
    script = options.script.read_bytes() if options.script else None
    version = find_qemu()
    tried, why = accelerators(options.accel)
    progress.say(f"QEMU {version}: {why}")
    progress.tick("Finding the guest's root and the kernel (the first time they are fetched)")
    cache = Cache(cache_directory())
    root = GuestRoot(cache)
    kernel = KernelStore(cache, root, progress).find(wanted, options.modules)
    layers = [root.layer, *([kernel.modules] if kernel.modules else [])]
    layers += program_layers(cache, root)
    return list(tried), LabRequest(
        kernel=kernel,
        config=config,
        filesystem=past.filesystem if past else options.filesystem,
        faults=faults,
        append=options.append,
        listen=listen,
        strict=options.strict,
        layers=tuple(layers),
        linger_seconds=options.linger,
        mirror=options.mirror_ledger,
        began=began,
        devices=tuple(options.device),
        script=script,
        keep=options.keep or past is not None,
        resumed=past is not None,
        directory=past.directory if past else Path(),
        run_id=past.run_id if past else "",
    )


def _exit_code(verdict: Verdict, *, bisect: bool, interrupted: bool) -> int:
    if not bisect:
        return PLAIN.verdicts[verdict.verdict]
    # Whoever stops a soak stops the bisection: what was seen so far judges no commit.
    return INTERRUPTED if interrupted else BISECT.verdicts[verdict.verdict]


def _boot_seconds(wanted: float, others: list[str]) -> float:
    """Do not wait long for an accelerator that another can stand in for: a real one is quick."""
    return min(wanted, _QUICK_BOOT_SECONDS) if others else wanted
