# SPDX-License-Identifier: GPL-2.0-only
"""On a real kernel: what must not be touched is refused, with a sentence that says why and what to do.

`guest/machine.py` tries everything in one guest; each test looks at what it told of one rule.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from soak.config.sections import parse_config
from soak.machine.changes import RESTORED
from soak.machine.changes.trees import MARK_FILE
from soak.model.vocabulary import RegionKind
from tests.boots.harness.script import guest_program, hardware, seen_in_guest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.boots.harness.shared_setups import SharedSetUps

pytestmark = pytest.mark.lab

SCRIPT = guest_program("machine")
# A bridge hides which of the functions behind it asks, so they share a group.
HARDWARE = (
    "virtio-net-pci,addr=1c.0",
    "virtio-blk-pci,drive=disk,addr=1b.0",
    "pcie-pci-bridge,id=two,addr=1d.0",
    "edu,bus=two,addr=1.0",
    "edu,bus=two,addr=2.0",
    "pcie-pci-bridge,id=one,addr=1e.0",
    "edu,bus=one,addr=1.0",
)


@pytest.fixture
def told(request: pytest.FixtureRequest, shared: SharedSetUps) -> Mapping[str, Any]:
    """Boot a guest with more hardware, and return what was told there, by name."""

    def make(place: Path, _: object) -> Mapping[str, Any]:
        seen = seen_in_guest(place, SCRIPT, *hardware(place, HARDWARE, 64 << 20))
        return {**seen, "directory": place / "script-run"}

    return shared.get(request, "machine", make)


def test_a_nic_in_use_is_refused(told: Mapping[str, Any]) -> None:
    assert told["nic.idle"] == told["nic.down"] == ""
    assert "carries the route 198.51.100.0/24" in told["nic.used"]
    assert "is up with the address 192.0.2.1/24" in told["nic.used"]
    assert "ip link set" in told["nic.used"]


def test_a_mounted_disk_is_refused(told: Mapping[str, Any]) -> None:
    assert told["disk.idle"] == told["disk.free"] == ""
    assert "is mounted on /mnt/disk: 'umount /mnt/disk' first" in told["disk.mounted"]


def test_a_disk_below_a_mounted_device_is_refused(told: Mapping[str, Any]) -> None:
    assert "dm-0 is built on vda" in told["disk.stacked"]
    assert "dm-0 on vda is mounted on /mnt/disk" in told["disk.stacked"]


def test_a_disk_used_without_a_mount_is_refused(told: Mapping[str, Any]) -> None:
    assert "claimed by the kernel" in told["disk.mounted-elsewhere"]
    pid, sentence = told["disk.open"]
    assert f"({pid}) has a device of it open" in sentence


def test_a_shared_group_is_refused(told: Mapping[str, Any]) -> None:
    mate, sentence = told["group.shared"]
    assert f"with {mate}, which has no driver" in sentence
    assert f"bind {mate} to vfio-pci" in sentence
    # Bound to vfio-pci the other one is harmless, until somebody uses it: a group opens once.
    assert told["group.both"] == ""
    assert "is in use" in told["group.both-used"]


def test_a_bridge_is_refused_as_endpoint(told: Mapping[str, Any]) -> None:
    assert told["group.alone"] == ""
    assert "not an endpoint" in told["group.bridge"]
    assert "not an endpoint" in told["group.host-bridge"]


def test_a_missing_function_is_refused(told: Mapping[str, Any]) -> None:
    nowhere, nonsense = told["group.nowhere"]
    assert "no such function" in nowhere
    assert "not a PCI address" in nonsense


def test_a_function_in_use_over_vfio_is_refused(told: Mapping[str, Any]) -> None:
    assert told["vfio.free"] == told["vfio.free-again"] == ""
    assert "is in use" in told["vfio.used"]
    assert "fuser" in told["vfio.used"]


def test_a_device_dax_in_use_is_refused(told: Mapping[str, Any]) -> None:
    state, says, problem = told["dax.free"]
    assert (state, problem) == ("ok", None)
    assert "a region of kind device-dax" in says
    # It is in use as well when only a mapping is left of it.
    for how in ("open", "map"):
        pid, state, says, problem = told[f"dax.{how}"]
        assert state == "no"
        assert f"({pid})" in says
        assert f"it is in use by python3.11 ({pid})" in problem


def test_a_device_dax_as_ram_is_refused(told: Mapping[str, Any]) -> None:
    driver, state, says, remedy, problem = told["dax.ram"]
    assert (driver, state) == ("kmem", "no")
    assert "system RAM" in says
    assert "daxctl reconfigure-device --mode=devdax dax0.0" in remedy
    assert "system RAM" in problem
    assert "it has no driver" in told["dax.unbound"]


def test_other_files_are_refused_as_device_dax(told: Mapping[str, Any]) -> None:
    assert "/dev/null, which is not a device-dax" in told["dax.no-device"]
    assert "/dev/dax9.9, which does not exist" in told["dax.nowhere"]


@pytest.mark.parametrize("name", ["foreign.data", "foreign.link"])
def test_a_foreign_directory_is_refused(told: Mapping[str, Any], name: str) -> None:
    assert "/mnt/dax/dax-soak-files exists" in told[name]
    assert "move anything else away" in told[name]
    assert told["foreign.kept"] == "somebody's"


def test_two_regions_on_one_file_system_are_refused(told: Mapping[str, Any]) -> None:
    assert "'files' and 'twin' lie on the same memory" in told["twins"]
    assert told["twins.left"] == ["lost+found"]


def test_region_directories_are_removed(told: Mapping[str, Any]) -> None:
    """One whose files hang in the kernel stays for as long as the run may touch it."""
    assert told["directory.files"] == [MARK_FILE, "file-00", "file-01"]
    assert told["directory.left"] == told["directory.files"]
    assert told["directory.settled"] == [RESTORED]
    assert told["directory.gone"] == ["lost+found"]


def test_a_file_system_without_dax_is_refused(told: Mapping[str, Any]) -> None:
    state, says, problem = told["fs.dax"]
    assert (state, problem) == ("ok", None)
    assert "a region of kind fs-dax" in says
    assert "does not lie on a pmem namespace" in told["fs.tmpfs"]
    assert "No such file" in told["fs.missing"]
    assert told["fs.unmounted"][0] == "no"
    assert "it is not mounted" in told["fs.unmounted"][1]
    state, says, remedy, problem = told["fs.never"]
    assert state == "no"
    assert "mounted without DAX" in says
    assert "mount -o dax=always" in remedy
    assert "whose files are not DAX" in problem


def test_check_lists_the_machine(told: Mapping[str, Any]) -> None:
    survey = told["survey"]
    assert survey["format"] == 1
    kernel = {line["subject"]: line["state"] for line in survey["kernel"]}
    for subject in ("IOMMU", "vfio type1", "vfio-pci", "BPF", "BTF", "kallsyms", "stacks"):
        assert kernel[subject] == "ok"
    assert [line["path"] for line in survey["device_dax"]] == ["/dev/dax0.0"]
    assert [line["path"] for line in survey["file_systems"]] == ["/mnt/dax"]
    assert {line["state"] for line in survey["functions"]} == {"ok", "no"}
    assert all(len(line) < 80 for line in told["text"].splitlines())


def test_a_written_configuration_fits(told: Mapping[str, Any]) -> None:
    config = parse_config(tomllib.loads(told["proposal"]), "soak.toml")
    assert {region.kind: region.path for region in config.regions} == {
        RegionKind.DEVICE_DAX: "/dev/dax0.0",
        RegionKind.FS_DAX: "/mnt/dax",
        RegionKind.ANONYMOUS: "",
    }
    assert config.workload.mappers == 2
    assert len(config.vfio.devices) == 3
    assert told["proposal.fits"] == 0
    assert told["proposal.in-use"] == 2
    assert "give another name" in told["proposal.again"]


def test_a_refused_program_shows_the_verifiers_reason(told: Mapping[str, Any]) -> None:
    assert "BPF_PROG_LOAD" in told["bpf.refused"]
    assert "R5 !read_ok" in told["bpf.refused"]


def test_a_guest_that_cannot_power_off_is_ended(told: Mapping[str, Any]) -> None:
    """A process that unbinds a function in use hangs in the kernel, and so does a shutdown."""
    assert told["stuck"]
    assert not Path(told["directory"]).exists()
