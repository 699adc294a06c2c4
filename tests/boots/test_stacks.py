# SPDX-License-Identifier: GPL-2.0-only
"""What is built on a function's network card or disk keeps it from vfio, on a real kernel.

`guest/stacks.py` builds everything in one guest; each test looks at what was told of one rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.boots.harness.script import guest_program, hardware, seen_in_guest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.boots.harness.shared_setups import SharedSetUps

pytestmark = pytest.mark.lab

SCRIPT = guest_program("stacks")
# It has what is built here as modules.
KERNEL = "debian:6.1"
HARDWARE = (
    "virtio-net-pci,addr=1c.0",
    "nvme-subsys,id=shared",
    "nvme,serial=one,subsys=shared,addr=1a.0,id=path",
    "nvme,serial=one,subsys=shared,addr=1b.0",
    "nvme-ns,drive=disk,bus=path,nsid=1",
    "pcie-root-port,id=root,addr=1d.0,chassis=1",
    "nvme-subsys,id=divided",
    (
        "nvme,serial=two,subsys=divided,bus=root,sriov_max_vfs=1,max_ioqpairs=4,msix_qsize=5,"
        "sriov_vq_flexible=2,sriov_vi_flexible=1"
    ),
)


@pytest.fixture
def told(request: pytest.FixtureRequest, shared: SharedSetUps) -> Mapping[str, Any]:
    """Boot a guest with more hardware, and return what was told there, by name."""
    # It ends in the middle of a page, and its last sector is looked at all the same.
    size = (512 << 20) + 512

    def make(place: Path, _: object) -> Mapping[str, Any]:
        return seen_in_guest(place, SCRIPT, *hardware(place, HARDWARE, size), kernel=KERNEL)

    return shared.get(request, "stacks", make)


@pytest.mark.parametrize(("kind", "name"), [("vlan", "vlan5"), ("bond", "upper"), ("bridge", "upper")])
def test_a_nic_below_a_route_is_refused(told: Mapping[str, Any], kind: str, name: str) -> None:
    assert told[f"{kind}.idle"] == ""
    assert f"{name} (above " in told[f"{kind}.used"]
    assert "carries the route 198.51.100.0/24" in told[f"{kind}.used"]


def test_a_nic_in_another_namespace_is_refused(told: Mapping[str, Any]) -> None:
    assert told["nic.free"] == ""
    assert "is not in this network namespace" in told["namespace"]


def test_a_mounted_multipath_disk_is_refused(told: Mapping[str, Any]) -> None:
    one, other = told["paths.disks"]
    assert one == other
    assert len(one) == 1
    assert told["paths.idle"] == ""
    for sentence in told["paths.mounted"]:
        assert f"{one[0]} is mounted on /mnt/disk" in sentence


def test_swap_is_refused(told: Mapping[str, Any]) -> None:
    ((name,), _) = told["paths.disks"]
    for sentence in told["paths.swap"]:
        assert f"{name} is swap: 'swapoff /dev/{name}' first" in sentence


@pytest.mark.parametrize("what", ["xfs", "swap", "end"])
def test_a_disk_with_foreign_data_is_refused(told: Mapping[str, Any], what: str) -> None:
    assert told["contents.blank"] == told["contents.erased"] == ""
    ((name,), _) = told["paths.disks"]
    assert "it holds data that no soak wrote" in told[f"contents.{what}"]
    assert f"blkdiscard --zeroout /dev/{name}" in told[f"contents.{what}"]


def test_a_function_with_virtual_functions_is_refused(told: Mapping[str, Any]) -> None:
    assert told["sriov.idle"] == ""
    assert "it has 1 virtual functions, which would be lost" in told["sriov.used"]
    assert told["sriov.virtual"] == ""
