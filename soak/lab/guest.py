"""The guest's first process: it makes the machine ready, runs the soak, and tells the host how it goes.

It is started by the kernel from the initramfs, with nothing mounted and nobody else there.
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
from soak.lab.disks import make_disks
from soak.lab.protocol import Order

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOUNTS: Final = (
    ("proc", "/proc", "proc"),
    ("sysfs", "/sys", "sysfs"),
    ("devtmpfs", "/dev", "devtmpfs"),
    ("tmpfs", "/run", "tmpfs"),
    ("tmpfs", "/tmp", "tmpfs"),  # noqa: S108 - the guest's own, and nobody else is there
    ("debugfs", "/sys/kernel/debug", "debugfs"),
)
_OPTIONAL_MOUNTS: Final = {"debugfs"}
_DAX_MOUNT: Final = Path("/mnt/dax")
_CONFIG: Final = Path("/run/soak.toml")
_IVSHMEM: Final = ("0x1af4", "0x1110")
_EDU: Final = ("0x1234", "0x11e8")
_PCI: Final = Path("/sys/bus/pci")
_POWER_OFF: Final = 0x4321FEDC  # LINUX_REBOOT_CMD_POWER_OFF, include/uapi/linux/reboot.h
_TOOL_SECONDS: Final = 240
_DEVICE_SECONDS: Final = 30.0
_CHUNK: Final = 4096
_PYTHON: Final = "/usr/bin/python3.11"
_MAKE_FILESYSTEM: Final = {
    "ext4": ("mkfs.ext4", "-q", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    "xfs": ("mkfs.xfs", "-q", "-f", "-m", "reflink=0"),
}


class GuestError(Exception):
    """The guest lacks something that a soak needs; the sentence goes to the host."""


class Scene:
    """What a fault may need to know of the guest."""

    def __init__(self, device_dax: str, alignment: int, ledger: Path, supervisor_pid: int) -> None:
        self.device_dax = device_dax
        self.alignment = alignment
        self.supervisor_pid = supervisor_pid
        self.fs_dax = _DAX_MOUNT
        self._ledger = ledger
        self._kept: list[object] = []

    @property
    def fs_dax_files(self) -> Path:
        return next(path for path in self.fs_dax.iterdir() if (path / "file-00").exists())

    def worker_pid(self, name: str) -> int:
        """Look up a worker's process in the ledger."""
        from soak.ledger import Ledger  # noqa: PLC0415 - only a fault needs it here

        return Ledger.open(self._ledger).block(name).get("pid")

    def workers_started(self) -> bool:
        from soak.ledger import Ledger  # noqa: PLC0415 - only a fault needs it here

        layout_pid = Ledger.open(self._ledger).block("supervisor")
        return layout_pid.get("state") == layout_pid.block.fields["state"].values.index("running")

    def keep(self, thing: object) -> None:
        """Hold on to something until the machine ends."""
        self._kept.append(thing)


class Control:
    """The control port: tells the host, and hears it."""

    def __init__(self, path: Path) -> None:
        self._port = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        os.set_blocking(self._port, False)

    def fileno(self) -> int:
        return self._port

    def tell(self, message: str, **fields: Any) -> None:  # noqa: ANN401
        """Send a message; a host that does not read loses it rather than hold the guest up."""
        line = json.dumps({"message": message, **fields}, default=str) + "\n"
        with contextlib.suppress(BlockingIOError):
            os.write(self._port, line.encode())

    def heard(self) -> list[str]:
        try:
            return os.read(self._port, _CHUNK).decode().split()
        except BlockingIOError:
            return []


def main() -> None:
    """Be the first process: whatever happens, the machine is turned off at the end."""
    control = None
    try:
        _mount_all()
        os.environ["PATH"] = "/usr/sbin:/usr/bin"
        order = Order.from_json(Path("/", protocol.ORDER_FILE).read_text())
        _load_modules(order.filesystem)
        control = Control(_port(protocol.CONTROL_PORT))
        control.tell(protocol.BOOTED, release=os.uname().release, uptime=time.monotonic())
        _serve(order, control)
    except (GuestError, UsageError) as error:
        _tell_failure(control, str(error))
    except BaseException as error:  # noqa: BLE001 - nobody is behind this to report it
        traceback.print_exc()
        _tell_failure(control, f"the guest's first process failed: {error!r}")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Nothing is synced: a file system on which something hangs would keep the machine from ending.
        LIBC.reboot(_POWER_OFF)


def _tell_failure(control: Control | None, summary: str) -> None:
    print(f"dax-soak: {summary}", file=sys.stderr, flush=True)  # noqa: T201 - the console is the log
    if control is not None:
        control.tell(protocol.FAILED, summary=summary)


def _serve(order: Order, control: Control) -> None:
    """Prepare, run the soak, and watch it until it ends or the deadline passes."""
    ledger = _ledger_memory()
    functions = list(_bind_functions())
    device, alignment = _make_namespaces(order)
    config = _complete(order.config, device, functions)
    config["workload"] |= make_disks()
    import tomli_w  # noqa: PLC0415 - what is imported before it is needed delays the boot

    _CONFIG.write_text(tomli_w.dumps(config))
    control.tell(protocol.READY, uptime=time.monotonic())
    child = subprocess.Popen(
        [
            *(_PYTHON, "-I", "-c", _RUN, *order.program, "-c", str(_CONFIG)),
            *("--run-id", order.run_id),
            *("--ledger", str(ledger), "--journal-port", str(_port(protocol.JOURNAL_PORT))),
            *(["--mirror-ledger"] if order.mirror else []),
        ]
    )
    scene = Scene(device, alignment, ledger, child.pid)
    code = _watch(order, control, child, scene)
    control.tell(protocol.EXITED, code=code)
    # The port's queue is the host's to empty: give it the time to do so.
    time.sleep(0.2)


_RUN: Final = (
    "import sys; sys.path.insert(0, '/usr/lib/dax-soak'); "
    "from soak.cli import main; sys.exit(main())"
)


def _watch(order: Order, control: Control, child: subprocess.Popen[bytes], scene: Scene) -> int:
    from soak.lab.faults import FAULTS  # noqa: PLC0415 - not needed before

    deadline = time.monotonic() + order.deadline_seconds
    waiting = [(str(name), float(seconds)) for name, seconds in order.faults]
    started: float | None = None
    while child.poll() is None:
        control.tell(protocol.ALIVE)
        if time.monotonic() > deadline:
            child.kill()
        if started is None and waiting and scene.workers_started():
            started = time.monotonic()
        for name, seconds in list(waiting):
            if started is not None and time.monotonic() - started >= seconds:
                waiting.remove((name, seconds))
                control.tell(protocol.FAULT, name=name)
                FAULTS[name].plant(scene)
        if select.select([control], [], [], protocol.ALIVE_SECONDS)[0]:
            for word in control.heard():
                if word == protocol.STOP:
                    child.send_signal(signal.SIGTERM)
        _reap_orphans(child.pid)
    return child.returncode


def _reap_orphans(own: int) -> None:
    """Reap processes whose parent died: that is the first process's duty. `own` is left to its owner."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == own:
            continue
        with contextlib.suppress(OSError, IndexError):
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state == "Z" and parent == "1":
                os.waitpid(int(entry.name), os.WNOHANG)


def _mount_all() -> None:
    for source, target, kind in _MOUNTS:
        Path(target).mkdir(parents=True, exist_ok=True)
        result = LIBC.mount(source.encode(), target.encode(), kind.encode(), 0, None)
        if kind not in _OPTIONAL_MOUNTS:
            checked(result, f"mount {target}")


def _load_modules(filesystem: str) -> None:
    """Load what is a module in this kernel; what is built in needs no loading."""
    modules = Path("/usr/lib/modules") / os.uname().release
    if not modules.exists():
        return
    from soak.lab.modules import BASE_MODULES  # noqa: PLC0415 - only where there are modules

    # A module that this kernel does not have is missed later, by whoever needs it; the console has
    # what modprobe said.
    subprocess.run(
        ["modprobe", "--all", *BASE_MODULES, filesystem], check=False, timeout=_TOOL_SECONDS
    )


def _port(name: str) -> Path:
    for entry in Path("/sys/class/virtio-ports").glob("*/name"):
        if entry.read_text().strip() == name:
            return Path("/dev") / entry.parent.name
    raise GuestError(
        f"the kernel shows no virtio-serial port {name}: it needs CONFIG_VIRTIO_CONSOLE"
    )


def _functions_of(identity: tuple[str, str]) -> Iterator[Path]:
    for entry in sorted((_PCI / "devices").iterdir()):
        read = tuple((entry / name).read_text().strip() for name in ("vendor", "device"))
        if read == identity:
            yield entry


def _ledger_memory() -> Path:
    """Enable the memory that the host shares, and return the file that maps it."""
    for device in _functions_of(_IVSHMEM):
        (device / "enable").write_text("1")
        return device / "resource2"
    raise GuestError("the machine has no ivshmem device for the ledger")


def _bind_functions() -> Iterator[str]:
    """Give the edu functions to vfio-pci."""
    for device in _functions_of(_EDU):
        (device / "driver_override").write_text("vfio-pci")
        (_PCI / "drivers_probe").write_text(device.name)
        if not (device / "driver").exists():
            raise GuestError(
                f"vfio-pci did not take {device.name}: the kernel needs CONFIG_VFIO_PCI and an IOMMU "
                f"(intel_iommu=on)"
            )
        yield device.name


def _make_namespaces(order: Order) -> tuple[str, int]:
    """Divide the NVDIMM in a device-dax and a file system; return the device and its alignment."""
    if not _appears(Path("/sys/bus/nd/devices/region0")):
        raise GuestError(
            "the kernel shows no NVDIMM: it needs CONFIG_ACPI_NFIT and CONFIG_LIBNVDIMM"
        )
    _tool("ndctl", "disable-region", "region0")
    _tool("ndctl", "init-labels", "-f", "nmem0")
    _tool("ndctl", "enable-region", "region0")
    create = ("ndctl", "create-namespace", "-r", "region0", "-M", "dev")
    dax = json.loads(_tool(*create, "-m", "devdax", "-a", "2M", "-s", str(order.device_dax_size)))
    fsdax = json.loads(_tool(*create, "-m", "fsdax", "-s", str(order.fs_dax_size)))
    disk = f"/dev/{fsdax['blockdev']}"
    _tool(*_MAKE_FILESYSTEM[order.filesystem], disk)
    _DAX_MOUNT.mkdir(parents=True)
    result = LIBC.mount(
        disk.encode(), bytes(_DAX_MOUNT), order.filesystem.encode(), 0, b"dax=always"
    )
    checked(result, f"mount {order.filesystem} with dax=always")
    device = dax["daxregion"]["devices"][0]
    return f"/dev/{device['chardev']}", int(dax["align"])


def _appears(path: Path) -> bool:
    """Wait for what a driver registers in its own time."""
    deadline = time.monotonic() + _DEVICE_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _tool(*arguments: str) -> str:
    result = subprocess.run(
        arguments, check=False, capture_output=True, text=True, timeout=_TOOL_SECONDS
    )
    if result.returncode != 0:
        raise GuestError(f"{' '.join(arguments)} failed: {result.stderr.strip() or result.stdout}")
    return result.stdout


def _complete(config: dict[str, Any], device: str, functions: list[str]) -> dict[str, Any]:
    """Fill in what only the guest knows: devices and paths."""
    paths = {"device-dax": device, "fs-dax": str(_DAX_MOUNT)}
    for region in config["region"]:
        if region["kind"] in paths:
            region["path"] = paths[region["kind"]]
    config["vfio"] = {"devices": functions}
    return config
