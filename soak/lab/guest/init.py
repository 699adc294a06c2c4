# SPDX-License-Identifier: GPL-2.0-only
"""The guest's first process: prepares the machine, runs the soak, and reports to the host.

The kernel starts it from the initramfs, with nothing mounted and no other process.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from soak.abi.libc import LIBC, checked
from soak.errors import UsageError
from soak.lab import protocol
from soak.lab.guest.context import GuestContext
from soak.lab.guest.disks import make_disks
from soak.lab.guest.namespaces import NamespaceError, prepare
from soak.lab.guest.program import GuestProgram, run_program, run_script
from soak.lab.protocol import Order
from soak.process.child import fork
from soak.supervisor.control import Question

if TYPE_CHECKING:
    from collections.abc import Iterator

    from soak.lab.guest.program import Load

_MOUNTS: Final = (
    ("proc", "/proc", "proc"),
    ("sysfs", "/sys", "sysfs"),
    ("devtmpfs", "/dev", "devtmpfs"),
    ("tmpfs", "/run", "tmpfs"),
    ("tmpfs", "/tmp", "tmpfs"),  # noqa: S108 - the guest's own, without other users
    ("debugfs", "/sys/kernel/debug", "debugfs"),
    ("pstore", "/sys/fs/pstore", "pstore"),
)
_OPTIONAL_MOUNTS: Final = {"debugfs", "pstore"}
_CONFIG: Final = Path("/run/soak.toml")
_CONTROL: Final = Path("/run")
_IVSHMEM: Final = ("0x1af4", "0x1110")
_EDU: Final = ("0x1234", "0x11e8")
_PCI: Final = Path("/sys/bus/pci")
_LINUX_REBOOT_CMD_POWER_OFF: Final = 0x4321FEDC  # LINUX_REBOOT_CMD_POWER_OFF, include/uapi/linux/reboot.h
_TOOL_SECONDS: Final = 240
_CHUNK: Final = 4096


class GuestError(Exception):
    """The guest lacks a requirement of a soak; the message goes to the host."""


class Control:
    """The control port: sends messages to the host, and receives its words."""

    def __init__(self, path: Path) -> None:
        self._port = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        os.set_blocking(self._port, False)

    def fileno(self) -> int:
        return self._port

    def send(self, message: str, **fields: Any) -> None:  # noqa: ANN401
        """Send a message; drop it if the host does not read, rather than block the guest."""
        line = json.dumps({"message": message, **fields}, default=str) + "\n"
        with contextlib.suppress(BlockingIOError):
            os.write(self._port, line.encode())

    def receive(self) -> list[str]:
        try:
            return os.read(self._port, _CHUNK).decode().split()
        except BlockingIOError:
            return []


def main(load: Load) -> None:
    """Run as the first process, and always power the machine off at the end.

    A child process imports the guest's program with `load`, and runs it.
    """
    order = Order.from_json(Path("/", protocol.ORDER_FILE).read_text())
    os.environ["PATH"] = "/usr/sbin:/usr/bin"
    reader, writer = os.pipe()
    pid = fork(
        lambda: run_script(reader) if order.script else run_program(load, reader),
        child_ends=[reader],
        parent_ends=[writer],
    )
    _run(order, GuestProgram(pid, writer))


def _run(order: Order, program: GuestProgram) -> None:
    control = None
    try:
        _mount_all()
        _load_modules(order)
        control = Control(_port(protocol.CONTROL_PORT))
        control.send(protocol.BOOTED, release=os.uname().release, uptime=time.monotonic())
        _serve(order, control, program)
    except (GuestError, NamespaceError, UsageError) as error:
        _report_failure(control, str(error))
    except BaseException as error:  # noqa: BLE001 - no other process could report it
        traceback.print_exc()
        _report_failure(control, f"the guest's first process failed: {error!r}")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # No sync: it would hang on a file system with a stuck operation.
        LIBC.reboot(_LINUX_REBOOT_CMD_POWER_OFF)


def _report_failure(control: Control | None, summary: str) -> None:
    _log(summary)
    if control is not None:
        control.send(protocol.FAILED, summary=summary)


def _log(text: str) -> None:
    print(f"dax-soak: {text}", file=sys.stderr, flush=True)  # noqa: T201 - the console is the log


def _serve(order: Order, control: Control, program: GuestProgram) -> None:
    """Prepare, run the soak, and watch it until it ends or the deadline passes."""
    if order.script:
        prepare(order.spaces, order.filesystem, resumed=order.resumed)
        control.send(protocol.READY, uptime=time.monotonic())
        _run_script(order, control, program)
        return
    ledger = _ledger_memory()
    functions = [device.name for device in _functions_of(_EDU)]
    found = prepare(order.spaces, order.filesystem, resumed=order.resumed)
    config = _complete(order.config, found, functions)
    config["workload"] |= make_disks()
    import tomli_w  # noqa: PLC0415 - an earlier import would delay the boot

    _CONFIG.write_text(tomli_w.dumps(config))
    control.send(protocol.READY, uptime=time.monotonic())
    program.start(
        [
            *order.program,
            "-c",
            str(_CONFIG),
            "--run-id",
            order.run_id,
            "--ledger",
            str(ledger),
            "--journal-port",
            str(_port(protocol.JOURNAL_PORT)),
            "--control",
            str(_CONTROL),
            *(["--mirror-ledger"] if order.mirror else []),
        ]
    )
    context = GuestContext(found, ledger, program.pid)
    code = _watch(order, control, program, context)
    control.send(protocol.EXITED, code=code)
    # Give the host time to empty the port's queue.
    time.sleep(0.2)


def _run_script(order: Order, control: Control, script: GuestProgram) -> None:
    """Run the host's script in place of a soak; its output goes to the journal port."""
    script.start([str(_port(protocol.JOURNAL_PORT))])
    deadline = time.monotonic() + order.deadline_seconds
    while (code := script.poll()) is None:
        control.send(protocol.ALIVE)
        if time.monotonic() > deadline:
            script.send_signal(signal.SIGKILL)
        if select.select([control], [], [], protocol.ALIVE_SECONDS)[0]:
            control.receive()
        _reap_orphans(script.pid)
    control.send(protocol.EXITED, code=code)
    time.sleep(0.2)


def _watch(order: Order, control: Control, program: GuestProgram, context: GuestContext) -> int:
    deadline = time.monotonic() + order.deadline_seconds
    waiting = [(str(name), float(seconds)) for name, seconds in order.faults]
    started: float | None = None
    pending: list[Question] = []
    while (code := program.poll()) is None:
        control.send(protocol.ALIVE)
        if time.monotonic() > deadline:
            program.send_signal(signal.SIGKILL)
        if started is None and waiting and context.workers_started():
            started = time.monotonic()
        for name, seconds in list(waiting):
            if started is not None and time.monotonic() - started >= seconds:
                waiting.remove((name, seconds))
                _plant(name, control, context)
        ports: list[Control | Question] = [control, *pending]
        readable = select.select(ports, [], [], protocol.ALIVE_SECONDS)[0]
        if control in readable:
            for word in control.receive():
                if word.startswith(protocol.PLANT):
                    waiting.append((word.removeprefix(protocol.PLANT), 0.0))
                else:
                    pending += _handle(word, control, program)
        for question in [question for question in pending if question in readable]:
            pending.remove(question)
            control.send(protocol.ANSWER, answer=question.answer(protocol.ALIVE_SECONDS))
        _reap_orphans(program.pid)
    return code


def _plant(name: str, control: Control, context: GuestContext) -> None:
    from soak.lab.guest.faults import FAULTS  # noqa: PLC0415 - not needed before

    control.send(protocol.FAULT, name=name)
    try:
        FAULTS[name].plant(context)
    except OSError as error:
        # A fault that cannot be planted must not end the guest's first process.
        control.send(protocol.UNPLANTED, name=name, summary=str(error))


def _handle(word: str, control: Control, program: GuestProgram) -> list[Question]:
    """Handle a word of the host; return a request to the soak whose answer is pending."""
    if word == protocol.STOP:
        program.send_signal(signal.SIGTERM)
        return []
    try:
        return [Question(_CONTROL, word)]
    except OSError as error:
        control.send(protocol.ANSWER, answer=f"the soak does not listen yet ({error}): try again")
        return []


def _reap_orphans(own: int) -> None:
    """Reap orphans, as the first process must. `GuestProgram` reaps `own`."""
    look = os.WEXITED | os.WNOHANG | os.WNOWAIT
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, look)) is not None and ended.si_pid != own:
            os.waitpid(ended.si_pid, 0)


def _mount_all() -> None:
    for source, target, kind in _MOUNTS:
        if kind not in _OPTIONAL_MOUNTS:
            Path(target).mkdir(parents=True, exist_ok=True)
        result = LIBC.mount(source.encode(), target.encode(), kind.encode(), 0, None)
        if kind not in _OPTIONAL_MOUNTS:
            checked(result, f"mount {target}")


def _load_modules(order: Order) -> None:
    """Load the modules of a modular kernel."""
    modules = Path("/usr/lib/modules") / os.uname().release
    if not modules.exists():
        return
    # Imported only where there are modules: imports are slow here.
    from soak.lab.guest.modules import BASE_MODULES, SCRIPT_MODULES  # noqa: PLC0415

    # Ignore missing modules: their users report them, and the console has modprobe's messages.
    wanted = [*BASE_MODULES, order.filesystem, *(SCRIPT_MODULES if order.script else ())]
    subprocess.run(["modprobe", "--all", *wanted], check=False, timeout=_TOOL_SECONDS)


def _port(name: str) -> Path:
    for entry in Path("/sys/class/virtio-ports").glob("*/name"):
        if entry.read_text().strip() == name:
            return Path("/dev") / entry.parent.name
    raise GuestError(f"the kernel shows no virtio-serial port {name}: it needs CONFIG_VIRTIO_CONSOLE")


def _functions_of(identity: tuple[str, str]) -> Iterator[Path]:
    for entry in sorted((_PCI / "devices").iterdir()):
        read = tuple((entry / name).read_text().strip() for name in ("vendor", "device"))
        if read == identity:
            yield entry


def _ledger_memory() -> Path:
    """Enable the ivshmem device, and return the file that maps its memory."""
    for device in _functions_of(_IVSHMEM):
        (device / "enable").write_text("1")
        return device / "resource2"
    raise GuestError("the machine has no ivshmem device for the ledger")


def _complete(
    config: dict[str, Any], found: dict[str, dict[str, Any]], functions: list[str]
) -> dict[str, Any]:
    """Fill in the devices and paths that only the guest knows."""
    for region in config["region"]:
        region.update(found.get(region["name"], {}))
    config["vfio"] = {"devices": functions}
    return config
