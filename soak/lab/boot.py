"""What a boot of the lab consists of, and how often it is tried."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from soak.errors import UsageError
from soak.lab import rundir
from soak.lab.host import BootError, LabRun
from soak.lab.image import GuestRoot, program_layer
from soak.lab.kernels import KernelStore
from soak.lab.qemu import accelerators, find_qemu
from soak.lab.request import SPACE_NEEDED

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from pathlib import Path

    from soak.lab.cache import Cache
    from soak.lab.kernels import Kernel
    from soak.lab.progress import Progress
    from soak.lab.request import LabRequest
    from soak.verdict import Verdict

_QUICK_BOOT_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Parts:
    """The kernel, the layers of the initramfs, and the accelerators to try, in order."""

    kernel: Kernel
    layers: tuple[Path, ...]
    accelerators: tuple[str, ...]


@dataclass(frozen=True)
class Attempt:
    """One boot: its name, where it leaves what it did, and how long the guest may take to answer."""

    run_id: str
    directory: Path
    boot_seconds: float


@dataclass(frozen=True)
class Booted:
    """A boot that came up and has ended."""

    request: LabRequest
    verdict: Verdict
    interrupted: bool


def find_parts(options: argparse.Namespace, cache: Cache, progress: Progress) -> Parts:
    """Find, fetch or build what a boot needs.

    Raises:
        UsageError: something is missing, or cannot be had.
    """
    version = find_qemu()
    tried, why = accelerators(options.accel)
    progress.say(f"QEMU {version}: {why}")
    progress.tick("Finding the guest's root and the kernel (the first time they are fetched)")
    root = GuestRoot(cache)
    kernel = KernelStore(cache, root, progress).find(options.kernel, options.modules)
    modules = [kernel.modules] if kernel.modules else []
    return Parts(kernel, (root.layer, *modules, program_layer(cache, root)), tuple(tried))


def boot(
    parts: Parts,
    wanted_directory: Path | None,
    wanted_seconds: float,
    request_for: Callable[[Attempt], LabRequest],
    progress: Progress,
) -> Booted:
    """Boot until a guest comes up, run what it is asked to, and return how that ended.

    Raises:
        BootError: none came up.
        KeyboardInterrupt: somebody ended it before it was up.
        UsageError: something is wrong on the host; nothing is left behind.
    """
    retried = False
    attempts = list(parts.accelerators)
    while True:
        accelerator = attempts.pop(0)
        run_id = rundir.new_run_id()
        directory = rundir.make_run_directory(wanted_directory, run_id, SPACE_NEEDED)
        request = request_for(Attempt(run_id, directory, _boot_seconds(wanted_seconds, attempts)))
        kernel = parts.kernel
        progress.say(f"Linux {kernel.release} ({kernel.name}) under {accelerator}, run {run_id}")
        run = LabRun(request, accelerator, progress)
        try:
            verdict = asyncio.run(run.run())
        except BootError as error:
            rundir.discard(directory)
            if run.interrupted:
                raise KeyboardInterrupt from None
            if not attempts and error.crashed and not retried:
                # QEMU 7.2's emulation with a thread to a processor now and then runs code that the
                # kernel is just patching, and the guest dies. A kernel at fault dies again.
                retried = True
                attempts.append(accelerator)
            if not attempts:
                raise
            progress.say(f"{error}\nTrying once more, under {attempts[0]}.")
        except UsageError:
            rundir.discard(directory)
            raise
        else:
            return Booted(request, verdict, run.interrupted)


def _boot_seconds(wanted: float, others: list[str]) -> float:
    """Do not wait long for an accelerator that another can stand in for: a real one is quick."""
    return min(wanted, _QUICK_BOOT_SECONDS) if others else wanted
