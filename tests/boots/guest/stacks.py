# SPDX-License-Identifier: GPL-2.0-only
"""Runs in the guest of a lab: what is built on network cards and disks, and must be seen from below.

It tells in JSON lines what `dax-soak run` would say of each function meanwhile.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pyroute2 import IPRoute

from soak.abi.libc import LIBC, checked
from soak.machine.fitness import disk_objections
from soak.machine.pci import PciFunction, pci_functions
from tests.boots.harness.in_guest import elsewhere, objections_to, report, run_tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Tracebacks would end in the guest's console, which nobody reads.
sys.stderr = sys.stdout
PCI = Path("/sys/bus/pci/devices")
DEADLINE = 60.0
MOUNT = Path("/mnt/disk")
PAGE = 4096
NEW_NETWORK = 0x40000000  # CLONE_NEWNET


def until(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"not seen: {what}")
        time.sleep(0.1)


@contextmanager
def carrying(route: IPRoute, name: str) -> Iterator[None]:
    """Have an interface carry a route."""
    (index,) = route.link_lookup(ifname=name)
    route.link("set", index=index, state="up")
    route.addr("add", index=index, address="192.0.2.1", prefixlen=24)
    route.route("add", dst="198.51.100.0/24", oif=index)
    yield
    route.flush_addr(index=index)
    route.link("set", index=index, state="down")


def network() -> None:
    nic = next(entry for entry in pci_functions() if entry.links)
    (link,) = nic.links
    # Whatever is up would have an address by itself.
    Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
    Path(f"/proc/sys/net/ipv6/conf/{link}/disable_ipv6").write_text("1")
    with IPRoute() as route:
        (index,) = route.link_lookup(ifname=link)
        run_tool("modprobe", "8021q")
        route.link("set", index=index, state="up")
        route.link("add", ifname="vlan5", kind="vlan", link=index, vlan_id=5)
        report("vlan.idle", objections_to(nic.address))
        with carrying(route, "vlan5"):
            report("vlan.used", objections_to(nic.address))
        route.link("del", index=route.link_lookup(ifname="vlan5")[0])
        route.link("set", index=index, state="down")
        run_tool("modprobe", "bonding", "max_bonds=0")
        run_tool("modprobe", "bridge")
        for kind in ("bond", "bridge"):
            route.link("add", ifname="upper", kind=kind)
            (upper,) = route.link_lookup(ifname="upper")
            route.link("set", index=index, master=upper)
            report(f"{kind}.idle", objections_to(nic.address))
            with carrying(route, "upper"):
                report(f"{kind}.used", objections_to(nic.address))
            route.link("set", index=index, master=0)
            route.link("del", index=upper)
        report("nic.free", objections_to(nic.address))
        with elsewhere(lambda: checked(LIBC.unshare(NEW_NETWORK), "unshare")) as pid:
            route.link("set", index=index, net_ns_pid=pid)
            report("namespace", objections_to(nic.address))


def shared_namespace() -> None:
    """Look at a disk with two paths: each controller has it, by a hidden name of its own."""
    run_tool("modprobe", "nvme")
    until("disks", lambda: len(controllers()) == 2)
    one, other = controllers()
    report("paths.disks", [one.disks, other.disks])
    report("paths.idle", objections_to(one.address))
    path = f"/dev/{one.disks[0]}"
    report("contents.blank", contents(path))
    run_tool("mkfs.xfs", "-q", path)
    report("contents.xfs", contents(path))
    MOUNT.mkdir()
    checked(LIBC.mount(path.encode(), bytes(MOUNT), b"xfs", 0, None), "mount")
    report("paths.mounted", [objections_to(one.address), objections_to(other.address)])
    checked(LIBC.umount2(bytes(MOUNT), 0), "umount")
    make_swap(path)
    report("contents.swap", contents(path))
    checked(LIBC.swapon(path.encode(), 0), "swapon")
    report("paths.swap", [objections_to(one.address), objections_to(other.address)])
    checked(LIBC.swapoff(path.encode()), "swapoff")
    # A label at the end alone, as of md and of the copy of a partition table.
    end = int(Path(f"/sys/class/block/{one.disks[0]}/size").read_text()) * 512
    write(path, 0, bytes(1 << 20))
    report("contents.erased", contents(path))
    write(path, end - 512, b"label".ljust(512))
    report("contents.end", contents(path))


def controllers() -> list[PciFunction]:
    return [entry for entry in pci_functions() if entry.disks and entry.class_code == "010802"]


def contents(path: str) -> str:
    return "; ".join(objection.text() for objection in disk_objections(Path(path)))


def write(path: str, offset: int, data: bytes) -> None:
    descriptor = os.open(path, os.O_RDWR)
    os.pwrite(descriptor, data, offset)
    os.fsync(descriptor)
    os.close(descriptor)


def make_swap(path: str) -> None:
    """Write a header of swap space (include/linux/swap.h, union swap_header)."""
    header = bytearray(PAGE)
    header[1024:1036] = struct.pack("III", 1, 1023, 0)
    header[-10:] = b"SWAPSPACE2"
    write(path, 0, bytes(header))


def virtual_functions() -> None:
    function = next(
        entry for entry in pci_functions() if (PCI / entry.address / "sriov_totalvfs").exists()
    )
    place = PCI / function.address
    report("sriov.idle", objections_to(function.address))
    (place / "sriov_drivers_autoprobe").write_text("0")
    (place / "sriov_numvfs").write_text("1")
    report("sriov.used", objections_to(function.address))
    virtual = (place / "virtfn0").resolve().name
    report("sriov.virtual", objections_to(virtual))


for part in (network, shared_namespace, virtual_functions):
    part()
report("end", value=True)
