# SPDX-License-Identifier: GPL-2.0-only
"""A boot of the lab that runs a script in the guest instead of a soak: what is tried on a real kernel.

Tests are made of it. What the script prints comes out here, and its exit code is returned.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

from soak import run_directory
from soak.files.printable import printable
from soak.lab import protocol
from soak.lab.host.boot_error import STOOD_STILL, BootError
from soak.lab.host.console import begin_console, console_tail
from soak.lab.host.guest_messages import GarbledError, parse_message
from soak.lab.host.machine import Machine
from soak.lab.host.scratch import Scratch
from soak.lab.host.vm import VirtualMachine
from soak.lab.protocol import Order
from soak.lab.request import namespaces
from soak.process.output import put, put_error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from soak.lab.request import LabRequest

_LEDGER_SIZE: Final = 1 << 20
_DRAIN_SECONDS: Final = 5.0
_OFF_SECONDS: Final = 15.0
_LOOK_SECONDS: Final = 0.5
_CONSOLE_LINES: Final = 30


def script_files(paths: Sequence[Path]) -> dict[str, bytes]:
    """Read a script and the modules that it imports, and say where the guest has them.

    Modules are given by their paths from the directory below which their packages lie.
    """
    script, *modules = paths
    return {
        protocol.SCRIPT_FILE: script.read_bytes(),
        **{f"{protocol.SCRIPT_MODULES}/{path}": path.read_bytes() for path in modules},
    }


async def run_script(
    request: LabRequest, accelerator: str, files: Mapping[str, bytes], nvdimm: Path | None
) -> int:
    """Boot, run a script of `script_files`, and return its code.

    It has as long as `request.config.run.duration`. Nothing is left of it but the file for the
    NVDIMM, if one is given: the next boot finds its file systems there.

    Raises:
        BootError: the guest did not come up, or ended before the script did.
        UsageError: the lab's files cannot be written.
    """
    directory = request.directory
    ledger, console = directory / run_directory.LEDGER, directory / run_directory.CONSOLE
    begin_console(console)
    with ledger.open("wb") as memory:
        memory.truncate(_LEDGER_SIZE)
    order = _order(request, nvdimm)
    with Scratch(directory, request.layers, order, script=files, nvdimm=nvdimm) as scratch:
        machine = Machine.of_boot(request, accelerator, scratch, _LEDGER_SIZE)
        vm = VirtualMachine(machine)
        try:
            await vm.start()
            told = await _follow(vm, request)
        except OSError as error:
            raise BootError(str(error), started=False) from None
        finally:
            await vm.stop()
    shown = "\n".join(console_tail(console, _CONSOLE_LINES))
    if "code" not in told:
        raise BootError(
            f"{told.get('summary', 'The guest ended early')}. Its console:\n{shown}",
            crashed="ready" not in told,
        )
    if told["code"]:
        # What the script said before it failed is there.
        put_error(f"The guest's console:\n{shown}")
    run_directory.discard(directory)
    return int(told["code"])


def _order(request: LabRequest, nvdimm: Path | None) -> Order:
    return Order(
        run_id=request.run_id,
        config=request.config.to_table(),
        filesystem=request.filesystem,
        spaces=namespaces(request.config),
        deadline_seconds=request.config.run.duration,
        script=True,
        resumed=nvdimm is not None and nvdimm.exists(),
    )


async def _follow(vm: VirtualMachine, request: LabRequest) -> dict[str, Any]:
    """Pass on what comes from the guest until it ends; return its last word."""
    told: dict[str, Any] = {}
    listening = asyncio.create_task(_listen(vm, told))
    tasks = [asyncio.create_task(_pass_on(vm)), listening]
    limit = request.boot_seconds + 2 * request.config.run.duration
    if await _answers(vm, told, request.boot_seconds):
        with contextlib.suppress(TimeoutError):
            # A kernel with a device that never comes free does not turn its machine off.
            await asyncio.wait_for(asyncio.shield(listening), limit)
            await asyncio.wait_for(vm.wait(), _OFF_SECONDS)
        await asyncio.wait(tasks, timeout=_DRAIN_SECONDS)
    for task in tasks:
        task.cancel()
    return told


async def _answers(vm: VirtualMachine, told: dict[str, Any], seconds: float) -> bool:
    """Wait until the guest's first process answers; False where there is no use in waiting longer."""
    looks = 0.0
    while "booted" not in told and not vm.ended:
        await asyncio.sleep(_LOOK_SECONDS)
        looks += vm.share()
        if vm.stands_still():
            told["summary"] = f"The guest {STOOD_STILL}"
            return False
        if looks * _LOOK_SECONDS > seconds:
            told["summary"] = "The guest never answered"
            return False
    return True


async def _pass_on(vm: VirtualMachine) -> None:
    async for text in vm.journal.lines():
        put(text.decode(errors="replace") + "\n")


async def _listen(vm: VirtualMachine, told: dict[str, Any]) -> None:
    async for text in vm.control.lines():
        try:
            message = parse_message(text)
        except GarbledError as error:
            put_error(f"The guest sent something odd: {printable(str(error))}")
            continue
        match message["message"]:
            case protocol.BOOTED:
                told["booted"] = True
            case protocol.READY:
                told["ready"] = True
            case protocol.EXITED:
                told["code"] = message["code"]
                return
            case protocol.FAILED:
                told[protocol.FAILED] = True
                told["summary"] = f"The guest cannot be used: {message['summary']}"
