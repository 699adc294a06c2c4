# SPDX-License-Identifier: GPL-2.0-only
"""Runs in the guest of a lab: tries on a real kernel what must be refused, and tells it in JSON lines."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soak.abi.bpf import load_program
from soak.abi.libc import LIBC, checked
from soak.abi.vfio import Container
from soak.config.sections import RegionSection
from soak.errors import UsageError
from soak.machine.changes import MachineChanges
from soak.machine.command import check_against
from soak.machine.dax import device_findings, file_system_findings
from soak.machine.pci import pci_functions
from soak.machine.proposal import Proposal, write_proposal
from soak.machine.survey import json_of, survey, text_of
from soak.model.vocabulary import RegionKind
from soak.regions import DeviceDaxRegion, examine_region, open_regions
from soak.workload.plan import make_plan
from tests.boots.harness.in_guest import elsewhere, objections_to, report, run_tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Tracebacks would end in the guest's console, which nobody reads.
sys.stderr = sys.stdout
DAX = Path("/mnt/dax")
DISK_MOUNT = Path("/mnt/disk")
STATE = Path("/var/lib/dax-soak/changes")
EDU = ("1234", "11e8")
BRIDGE = ("1b36", "000e")
NEW_MOUNTS = 0x00020000  # CLONE_NEWNS
PCI = Path("/sys/bus/pci")
DAX_DRIVERS = Path("/sys/bus/dax/drivers")
OPENS = """
import mmap, os, sys
descriptor = os.open(sys.argv[1], os.O_RDWR)
if sys.argv[2] == "map":
    kept = mmap.mmap(descriptor, 2 << 20)
    os.close(descriptor)
print("ready", flush=True)
sys.stdin.read()
"""


def refusal(act: Callable[[], object]) -> str | None:
    try:
        act()
    except UsageError as error:
        return str(error)
    return None


def mount(source: str, target: Path, kind: str, options: str) -> None:
    target.mkdir(parents=True, exist_ok=True)
    data = options.encode() or None
    checked(LIBC.mount(source.encode(), bytes(target), kind.encode(), 0, data), f"mount {target}")


def unmount(target: Path) -> None:
    checked(LIBC.umount2(ctypes.c_char_p(bytes(target)), ctypes.c_int(0)), f"umount {target}")


def bind(address: str) -> None:
    (PCI / "devices" / address / "driver_override").write_text("vfio-pci")
    (PCI / "drivers_probe").write_text(address)


@contextmanager
def opened(path: str, how: str) -> Iterator[int]:
    """Have another process open a device, or map it and close it again."""
    with subprocess.Popen(
        [sys.executable, "-c", OPENS, path, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid


def edu_functions() -> list[Any]:
    return [entry for entry in pci_functions() if (entry.vendor, entry.device) == EDU]


def network() -> None:
    from pyroute2 import IPRoute  # noqa: PLC0415 - takes seconds in a guest

    function = next(entry for entry in pci_functions() if entry.links)
    report("nic.idle", objections_to(function.address))
    with IPRoute() as route:
        index = route.link_lookup(ifname=function.links[0])[0]
        route.link("set", index=index, state="up")
        route.addr("add", index=index, address="192.0.2.1", prefixlen=24)
        route.route("add", dst="198.51.100.0/24", oif=index)
        report("nic.used", objections_to(function.address))
        route.flush_addr(index=index)
        route.link("set", index=index, state="down")
    report("nic.down", objections_to(function.address))


def disk() -> None:
    function = next(entry for entry in pci_functions() if entry.disks)
    path = f"/dev/{function.disks[0]}"
    report("disk.idle", objections_to(function.address))
    with opened(path, "open") as pid:
        report("disk.open", [pid, objections_to(function.address)])
    run_tool("mkfs.ext4", "-q", path)
    mount(path, DISK_MOUNT, "ext4", "")
    report("disk.mounted", objections_to(function.address))
    unmount(DISK_MOUNT)

    def mount_apart() -> None:
        checked(LIBC.unshare(NEW_MOUNTS), "unshare")
        mount(path, DISK_MOUNT, "ext4", "")

    with elsewhere(mount_apart):
        report("disk.mounted-elsewhere", objections_to(function.address))
    sectors = int(Path(f"/sys/class/block/{function.disks[0]}/size").read_text())
    table = f"0 {sectors} linear {path} 0"
    run_tool("dmsetup", "create", "top", "--noudevsync", "--table", table)
    mount("/dev/dm-0", DISK_MOUNT, "ext4", "")
    report("disk.stacked", objections_to(function.address))
    unmount(DISK_MOUNT)
    run_tool("dmsetup", "remove", "--noudevsync", "top")
    report("disk.free", objections_to(function.address))


def groups() -> None:
    bridges = [entry for entry in pci_functions() if (entry.vendor, entry.device) == BRIDGE]
    buses = {(PCI / "devices" / entry.address).resolve(): entry for entry in bridges}
    behind: dict[str, list[str]] = {}
    for entry in edu_functions():
        parent = (PCI / "devices" / entry.address).resolve().parent
        if parent in buses:
            behind.setdefault(buses[parent].address, []).append(entry.address)
    (alone,) = next(entry for entry in behind.values() if len(entry) == 1)
    one, other = next(entry for entry in behind.values() if len(entry) == 2)
    report("group.bridge", objections_to(bridges[0].address))
    report("group.host-bridge", objections_to("0000:00:00.0"))
    report("group.nowhere", [objections_to("0000:ff:1f.7"), objections_to("nonsense")])
    report("group.alone", objections_to(alone))
    report("group.shared", [other, objections_to(one)])
    bind(other)
    report("group.both", objections_to(one))
    with Container(other):
        report("group.both-used", objections_to(one))
    bind(alone)
    report("vfio.free", objections_to(alone))
    with Container(alone):
        report("vfio.used", objections_to(alone))
    report("vfio.free-again", objections_to(alone))


def directory() -> None:
    section = RegionSection("files", RegionKind.FS_DAX, str(DAX), 16 << 20)
    place = DAX / "dax-soak-files"
    with MachineChanges.open(STATE, "run-1") as changes:

        def open_files(*sections: RegionSection) -> object:
            return open_regions(sections, changes.make_directory)

        place.mkdir()
        (place / "precious").write_text("somebody's")
        report("foreign.data", refusal(lambda: open_files(section)))
        report("foreign.kept", (place / "precious").read_text())
        (place / "precious").unlink()
        place.rmdir()
        place.symlink_to(DAX / "nowhere")
        report("foreign.link", refusal(lambda: open_files(section)))
        place.unlink()
        twin = RegionSection("twin", RegionKind.FS_DAX, str(DAX), 16 << 20)
        report("twins", refusal(lambda: open_files(section, twin)))
        report("twins.left", listed(DAX))
        open_files(section)
        report("directory.files", listed(place))
        changes.leave_directory(place)
        changes.restore()
        report("directory.left", listed(place))
    # As the next soak does, and 'dax-soak restore'.
    with MachineChanges.open(STATE, "run-2") as changes:
        report("directory.settled", [settled.event for settled in changes.recover()])
    report("directory.gone", listed(DAX))


def listed(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def refused_program() -> None:
    """Load a BPF program that returns a register in which nothing is."""
    try:
        load_program(bytes((0xBF, 0x50, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0)))
    except OSError as error:
        report("bpf.refused", str(error))


def file_systems() -> None:
    def examine(path: str) -> str | None:
        return refusal(lambda: examine_region(RegionSection("files", RegionKind.FS_DAX, path, 16 << 20)))

    (found,) = file_system_findings()
    report("fs.dax", [found.state, found.says, examine(str(DAX))])
    report("fs.tmpfs", examine("/tmp"))  # noqa: S108 - the guest's own
    report("fs.missing", examine("/no/such/place"))
    source = f"/dev/{found.facts['disk']}"
    unmount(DAX)
    (found,) = file_system_findings()
    report("fs.unmounted", [found.state, found.says])
    mount(source, DAX, "ext4", "dax=never")
    (found,) = file_system_findings()
    report("fs.never", [found.state, found.says, found.remedy, examine(str(DAX))])
    unmount(DAX)
    mount(source, DAX, "ext4", "dax=always")


def device_dax() -> None:
    path = "/dev/dax0.0"
    section = RegionSection("dax", RegionKind.DEVICE_DAX, path)

    def examine() -> str | None:
        return refusal(lambda: DeviceDaxRegion.find(section))

    (found,) = device_findings()
    report("dax.free", [found.state, found.says, examine()])
    for how in ("open", "map"):
        with opened(path, how) as pid:
            (found,) = device_findings()
            report(f"dax.{how}", [pid, found.state, found.says, examine()])
    report("dax.no-device", refusal(lambda: examine_region(replaced(section, "/dev/null"))))
    report("dax.nowhere", refusal(lambda: examine_region(replaced(section, "/dev/dax9.9"))))
    (DAX_DRIVERS / "device_dax/unbind").write_text("dax0.0")
    report("dax.unbound", examine())
    (DAX_DRIVERS / "device_dax/remove_id").write_text("dax0.0")
    (DAX_DRIVERS / "kmem/new_id").write_text("dax0.0")
    (found,) = device_findings()
    report("dax.ram", [found.facts["driver"], found.state, found.says, found.remedy, examine()])


def replaced(section: RegionSection, path: str) -> RegionSection:
    return RegionSection(section.name, section.kind, path)


def proposal() -> None:
    for function in edu_functions():
        if function.address.startswith("0000:00:"):
            bind(function.address)
    sections = survey()
    report("survey", json.loads(json_of(sections)))
    report("text", text_of(sections))
    path = Path("/run/proposal.toml")
    write_proposal(Proposal.of(sections), path)
    report("proposal", path.read_text())
    report("proposal.again", refusal(lambda: write_proposal(Proposal.of(sections), path)))
    report("proposal.fits", check_against(path, make_plan, as_json=False))
    with opened("/dev/dax0.0", "map"):
        report("proposal.in-use", check_against(path, make_plan, as_json=False))


def stuck_function() -> None:
    """Keep a function open beyond the end: to unbind it hangs, and the guest cannot power off."""
    address = next(entry.address for entry in edu_functions() if entry.address.startswith("0000:00:"))
    # `proposal` has bound it.
    container = Container(address)
    unbinder = os.fork()
    if unbinder == 0:
        (PCI / "drivers/vfio-pci/unbind").write_text(address)
        os._exit(0)
    while "vfio_unregister_group_dev" not in Path(f"/proc/{unbinder}/stack").read_text():
        time.sleep(0.1)
    if os.fork() == 0:
        # What keeps the function outlives this program.
        time.sleep(600)
        container.close()
    report("stuck", value=True)


PARTS = (
    network,
    disk,
    groups,
    directory,
    file_systems,
    refused_program,
    proposal,
    device_dax,
    stuck_function,
)
for part in PARTS:
    began = time.monotonic()
    part()
    report(f"seconds.{part.__name__}", time.monotonic() - began)
report("end", value=True)
