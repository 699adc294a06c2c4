# SPDX-License-Identifier: GPL-2.0-only
"""What a boot of the lab consists of, and how often it is tried."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeVar

from soak import run_directory
from soak.errors import UsageError
from soak.lab.host.boot_error import BootError
from soak.lab.host.qemu import accelerators, find_qemu
from soak.lab.host.run import LabRun
from soak.lab.host.timing import DEFAULT_TIMING, Timing
from soak.lab.image.root import GuestRoot, program_layers
from soak.lab.kernels.store import KernelStore
from soak.lab.kernels.unpacked import unpacked_image
from soak.lab.request import space_needed
from soak.run_directory import RunDirectory
from soak.supervisor.control import interrupt_on_ending_signals

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from pathlib import Path

    from soak.lab.cache import Cache
    from soak.lab.kernels.store import Kernel
    from soak.lab.progress import Progress
    from soak.lab.request import LabRequest
    from soak.verdict import Verdict

_T = TypeVar("_T")

DEFAULT_KERNEL: Final = "debian:6.1"
_QUICK_BOOT_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Parts:
    """The kernel, the layers of the initramfs, and the accelerators to try, in order."""

    kernel: Kernel
    layers: tuple[Path, ...]
    accelerators: tuple[str, ...]


@dataclass(frozen=True)
class Booted:
    """A boot that came up and has ended."""

    request: LabRequest
    verdict: Verdict
    interrupted: bool


def find_parts(options: argparse.Namespace, kernel: str, cache: Cache, progress: Progress) -> Parts:
    """Find, fetch or build what a boot needs.

    Raises:
        UsageError: something is missing, or cannot be had.
    """
    version = find_qemu()
    tried, why = accelerators(options.accel)
    progress.say(f"QEMU {version}: {why}")
    progress.tick("Finding the guest's root and the kernel (the first time they are fetched)")
    root = GuestRoot(cache)
    found = KernelStore(cache, root, progress).find(kernel, options.modules)
    if tried[0] == "tcg":
        found = replace(found, unpacked=unpacked_image(cache, found.image))
    modules = [found.modules] if found.modules else []
    return Parts(found, (root.layer, *modules, *program_layers(cache, root)), tuple(tried))


def soak_once(
    request: LabRequest, accelerator: str, progress: Progress, timing: Timing = DEFAULT_TIMING
) -> Booted:
    """Boot a guest, and watch its run until the end.

    Raises:
        BootError: it did not come up.
        KeyboardInterrupt: a signal ended it before the guest was up.
    """
    run = LabRun(request, accelerator, progress, timing)
    try:
        verdict = asyncio.run(run.run())
    except BootError:
        if run.interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        interrupt_on_ending_signals()
    return Booted(request, verdict, run.interrupted)


def boot(
    accelerators_to_try: tuple[str, ...],
    request: LabRequest,
    directory: Path | None,
    boot_seconds: float,
    work: Callable[[LabRequest, str], _T],
    *,
    progress: Progress,
) -> _T:
    """Boot until a guest comes up, and return what came of the work in it.

    A run that goes on has its directory; each attempt at a new one has its own, which belongs to this
    program until the work is done and is gone again where nothing came of it. What others left that were
    killed before their run began is removed first.

    Raises:
        BootError: none came up.
        UsageError: something is wrong on the host.
    """
    run_directory.discard_unbegun()
    retried = False
    attempts = list(accelerators_to_try)
    while True:
        accelerator = attempts.pop(0)
        request = replace(request, boot_seconds=_boot_seconds(boot_seconds, attempts))
        try:
            if request.resumed:
                return _attempt(request, accelerator, work, progress)
            run_id = run_directory.new_run_id()
            space = space_needed(request.config)
            with RunDirectory.make(directory, run_id, space) as owned:
                request = replace(request, directory=owned.path, run_id=run_id)
                try:
                    return _attempt(request, accelerator, work, progress)
                except (UsageError, KeyboardInterrupt):
                    run_directory.discard(owned.path)
                    raise
        except UsageError as error:
            if not isinstance(error, BootError):
                raise
            if not attempts and error.crashed and not retried:
                # QEMU 7.2's emulation with a thread to a processor now and then runs code that the
                # kernel is just patching, and the guest dies; and once a guest
                # was seen to fall asleep for good. A kernel at fault does it again.
                retried = True
                attempts.append(accelerator)
            if not attempts:
                raise
            progress.say(f"{error}\nTrying once more, under {attempts[0]}.")


def _attempt(
    request: LabRequest, accelerator: str, work: Callable[[LabRequest, str], _T], progress: Progress
) -> _T:
    progress.say(
        f"Linux {request.kernel.release} ({request.kernel.name}) under {accelerator}, run "
        f"{request.run_id}"
    )
    return work(request, accelerator)


def _boot_seconds(wanted: float, others: list[str]) -> float:
    """Do not wait long for an accelerator that another can stand in for: a real one is quick."""
    return min(wanted, _QUICK_BOOT_SECONDS) if others else wanted
