# SPDX-License-Identifier: GPL-2.0-only
"""What is read of a machine, and what is written for it; what is refused is in boots/test_machine.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soak.abi.dax import DaxDevice, PmemNamespace, dax_devices, pmem_namespace
from soak.abi.mounts import Mount, mounts, parse_mountinfo, parse_swaps
from soak.abi.netlink import uses_of_links
from soak.abi.openers import Device, openers
from soak.config.sections import load_config, parse_config
from soak.errors import UsageError
from soak.machine.check_line import Finding, Objection, State, refused
from soak.machine.dax import judge_device, judge_disk, size_text
from soak.machine.kernel import OFFERS, kernel_findings
from soak.machine.pci import PciFunction, objections, pci_functions
from soak.machine.proposal import Proposal, write_proposal
from soak.machine.survey import Section, json_of, survey, text_of
from soak.model.vocabulary import RegionKind
from soak.workload.plan import make_plan
from tests.support.program import ROOT, dax_soak
from tests.support.soak import deterministic

LINE = (
    rb"36 35 98:0 /mnt1 /mnt/with\040blank rw,noatime master:1 shared:2 - ext4 /dev/root\134x "
    rb"rw,dax=always"
)


def test_a_line_of_mountinfo_is_read() -> None:
    (mount,) = parse_mountinfo(LINE + b"\n")
    assert mount == Mount(
        "98:0",
        "/mnt1",
        "/mnt/with blank",
        "ext4",
        "/dev/root\\x",
        frozenset(("rw", "noatime", "dax=always")),
    )


@pytest.mark.parametrize("line", [b"", b"1 2 3", LINE.replace(b" - ", b" ")])
def test_malformed_mountinfo_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="mountinfo"):
        parse_mountinfo(line + b"\n")


def test_this_machines_root_is_mounted() -> None:
    status = Path("/").stat().st_dev
    root = [mount for mount in mounts() if mount.point == "/"]
    assert f"{os.major(status)}:{os.minor(status)}" in {mount.number for mount in root}


def test_swaps_are_read_without_their_heading() -> None:
    content = b"Filename\tType\tSize\n/dev/dm-1 partition 1 0 -2\n/swap\\040file file 1 0 -3\n"
    assert parse_swaps(content) == ["/dev/dm-1", "/swap file"]


def test_openers_of_a_device_are_found(tmp_path: Path) -> None:
    """By what the file stands for, not by its name."""
    zero = Device.of(Path("/dev/zero").stat())
    assert zero is not None
    text = "f = open('/dev/zero', 'rb')\nprint('ready', flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seen = openers([zero])
        assert process.pid in seen.found
        assert f"({process.pid})" in seen.texts()[0]
        assert process.pid not in openers([zero], but=[process.pid]).found
        process.communicate(b"\n")
    assert process.pid not in openers([zero]).found
    assert Device.of(tmp_path.stat()) is None


def test_uses_of_links_come_over_netlink() -> None:
    uses = uses_of_links(["lo", "no-such-link"])
    assert set(uses) == {"lo"}
    # A loopback that is up has its address, and no route of its own.
    assert all("127.0.0.1" in use or "::1" in use for use in uses["lo"])


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def test_device_dax_is_read_from_sysfs(tmp_path: Path) -> None:
    place = tmp_path / "nd/dax0.1/dax0.0"
    for name, value in {
        "size": "532676608",
        "align": "2097152",
        "resource": "0x140a00000",
        "target_node": "-1",
        "dev": "251:0",
    }.items():
        write(place / name, value)
    write(place.parent / "mode", "pmem")
    bus = tmp_path / "bus"
    bus.mkdir()
    (bus / "dax0.0").symlink_to(place)
    found = DaxDevice("dax0.0", "", 532676608, 2097152, 0x140A00000, -1, "251:0", "pmem")
    assert dax_devices(bus) == [found]
    (tmp_path / "drivers/kmem").mkdir(parents=True)
    (place / "driver").symlink_to(tmp_path / "drivers/kmem")
    assert dax_devices(bus) == [replace(found, driver="kmem")]
    # The seed from which others are made.
    write(place / "size", "0")
    assert dax_devices(bus) == []
    assert dax_devices(tmp_path / "nothing") == []


@pytest.mark.parametrize(
    ("name", "mode", "expected"),
    [
        ("pfn0.1", "pmem", PmemNamespace("namespace0.1", "fsdax", "pmem", 4096, 8192)),
        ("btt0.0", "", PmemNamespace("namespace0.1", "sector", "none", 0, 0)),
        ("namespace0.0", "raw", PmemNamespace("namespace0.0", "raw", "none", 0, 0)),
        ("namespace0.0", "memory", PmemNamespace("namespace0.0", "fsdax", "ram", 4096, 8192)),
    ],
)
def test_namespaces_below_disks_are_read(
    tmp_path: Path, name: str, mode: str, expected: PmemNamespace
) -> None:
    place = tmp_path / "devices" / name
    for key, value in {
        "mode": mode,
        "namespace": "namespace0.1",
        "resource": "0x1000",
        "size": "8192",
    }.items():
        write(place / key, value)
    (tmp_path / "bus/nd").mkdir(parents=True)
    (place / "subsystem").symlink_to(tmp_path / "bus/nd")
    (tmp_path / "block/259:0").mkdir(parents=True)
    (tmp_path / "block/259:0/device").symlink_to(place)
    assert pmem_namespace("259:0", tmp_path / "block") == expected
    assert pmem_namespace("8:0", tmp_path / "block") is None


FSDAX = PmemNamespace("namespace0.1", "fsdax", "pmem", 0, 1 << 30)


@pytest.mark.parametrize(
    ("namespace", "kind", "options", "told"),
    [
        (FSDAX, "ext4", "rw,dax=always", None),
        (FSDAX, "xfs", "rw,dax=always", None),
        (FSDAX, "ext4", "rw,dax", None),
        (FSDAX, "ext4", "rw", "mounted without DAX"),
        (FSDAX, "xfs", "rw,dax=inode", "mounted without DAX"),
        (FSDAX, "xfs", "rw,dax=never", "mounted without DAX"),
        (FSDAX, "ext4", "ro,dax=always", "read-only"),
        (FSDAX, "btrfs", "rw", "btrfs is not one of"),
        (FSDAX, None, "", "it is not mounted"),
        (replace(FSDAX, mode="raw"), "ext4", "rw", "no struct pages"),
        (replace(FSDAX, mode="sector"), "ext4", "rw", "no struct pages"),
    ],
)
def test_a_file_system_is_fit_or_has_objections(
    namespace: PmemNamespace, kind: str | None, options: str, told: str | None
) -> None:
    mount = Mount("1:1", "/", "/p", kind, "s", frozenset(options.split(","))) if kind else None
    found = judge_disk("pmem0.1", namespace, mount)
    assert found.state is (State.NO if told else State.OK)
    assert (told or "a region of kind fs-dax") in found.says
    assert bool(found.remedy) == bool(told)


@pytest.mark.parametrize(
    ("size", "text"), [(1 << 30, "1 GiB"), (510 << 20, "510 MiB"), (4096, "4 KiB"), (5, "5 bytes")]
)
def test_sizes_are_shown_in_whole_units(size: int, text: str) -> None:
    assert size_text(size) == text


def make_function(root: Path, address: str, class_code: str = "0x00ff00") -> Path:
    place = root / address
    for name, value in {"vendor": "0x1234", "device": "0x11e8", "class": class_code}.items():
        write(place / name, value)
    return place


def test_links_and_disks_below_a_function_are_found(tmp_path: Path) -> None:
    place = make_function(tmp_path, "0000:00:05.0", "0x010802")
    for name in ("block", "net", "misc"):
        (tmp_path / "class" / name).mkdir(parents=True)
    for name, kind in {
        "virtio0/net/eth7": "net",
        "nvme/nvme1/nvme1n1": "block",
        "nvme/nvme1/nvme1n1/nvme1n1p1": "block",
        "nvme/nvme1/nvme0c1n2": "block",
        "misc/vfio": "misc",
    }.items():
        (place / name).mkdir(parents=True)
        (place / name / "subsystem").symlink_to(tmp_path / "class" / kind)
    write(place / "nvme/nvme1/nvme1n1/nvme1n1p1/partition", "1")
    write(place / "nvme/nvme1/nvme1n1/dev", "259:3")
    write(place / "misc/vfio/dev", "10:196")
    function = PciFunction.read("0000:00:05.0", tmp_path)
    assert function.links == ("eth7",)
    # The hidden path of a disk with several stands for the disk that is used.
    assert function.disks == ("nvme0n2", "nvme1n1")
    assert function.devices == {Device("b", "259:3"), Device("c", "10:196")}
    assert function.group is None
    assert function.what() == "NVMe storage 1234:11e8"


def test_the_other_members_of_a_group_are_found(tmp_path: Path) -> None:
    group = tmp_path / "groups/7"
    for address in ("0000:00:05.0", "0000:00:05.1"):
        place = make_function(tmp_path / "pci", address)
        (place / "iommu_group").symlink_to(group)
        (group / "devices" / address).mkdir(parents=True)
    one, other = pci_functions(tmp_path / "pci")
    assert (one.group, one.members) == ("7", ("0000:00:05.1",))
    assert (other.group, other.members) == ("7", ("0000:00:05.0",))


@pytest.mark.parametrize("address", ["0000:ff:1f.7", "nonsense", "../../etc"])
def test_a_missing_function_is_refused(address: str) -> None:
    assert len(objections(address)) == 1


def test_every_kernel_feature_is_listed_with_its_cost() -> None:
    findings = kernel_findings()
    assert [found.subject for found in findings] == [offer.subject for offer in OFFERS]
    for found, offer in zip(findings, OFFERS, strict=True):
        assert found.says
        if found.state is not State.OK:
            assert found.says.endswith(offer.cost)
            assert found.remedy


# Whatever was found: paths with blanks, quotes, line ends and bytes that are no text.
# No path has a NUL in it.
paths = (
    st.binary(min_size=1, max_size=40)
    .filter(lambda path: 0 not in path)
    .map(lambda path: "/" + os.fsdecode(path))
)
addresses = st.from_regex(r"\A[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\Z")
states = st.sampled_from([State.OK, State.NO])


def found_at(path: str, state: State) -> Finding:
    return Finding(path, state, "says", facts={"path": path})


def function_at(address: str, state: State, driver: str | None, group: str) -> Finding:
    return Finding(address, state, "says", facts={"address": address, "driver": driver, "group": group})


def section(key: str, findings: list[Finding]) -> Section:
    return Section(key, key, tuple(findings))


surveys = st.tuples(
    st.lists(st.builds(found_at, paths, states), max_size=3, unique_by=lambda found: found.subject),
    st.lists(st.builds(found_at, paths, states), max_size=3, unique_by=lambda found: found.subject),
    st.lists(
        st.builds(
            function_at,
            addresses,
            states,
            st.sampled_from([None, "vfio-pci", "snd_hda_intel"]),
            st.sampled_from(["1", "2", "3", "4"]),
        ),
        max_size=6,
        unique_by=lambda found: found.subject,
    ),
)


@given(surveys)
@deterministic
def test_a_written_proposal_parses_to_its_configuration(
    found: tuple[list[Finding], list[Finding], list[Finding]],
) -> None:
    devices, systems, functions = found
    proposal = Proposal.of(
        [
            section("device_dax", devices),
            section("file_systems", systems),
            section("functions", functions),
        ]
    )
    text = proposal.text()
    config = parse_config(tomllib.loads(text), "soak.toml")
    assert config == proposal.config
    by_kind = {
        kind: [region.path for region in config.regions if region.kind is kind] for kind in RegionKind
    }
    for kind, all_found in ((RegionKind.DEVICE_DAX, devices), (RegionKind.FS_DAX, systems)):
        fit = [item.subject for item in all_found if item.state is State.OK]
        assert by_kind[kind] == [path for path in fit if path.isascii() or _is_utf8(path)]
        assert bool(by_kind[kind]) != (f"fits a region of kind {kind}" in text)
    assert len(by_kind[RegionKind.ANONYMOUS]) == 1
    fit_functions = {item.subject: item for item in functions if item.state is State.OK}
    chosen = [fit_functions[address].facts for address in config.vfio.devices]
    assert len({facts["group"] for facts in chosen}) == len(chosen)
    assert all(facts["driver"] != "snd_hda_intel" for facts in chosen)
    # It can be run: each mapper has its function, and there is one for probes.
    assert len(chosen) == (config.workload.mappers + 1 if config.workload.mappers else 0)
    make_plan(
        replace(
            config,
            regions=tuple(replace(region, size=region.size or 64 << 20) for region in config.regions),
        )
    )


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def test_a_proposal_fits_80_columns_and_explains_keys() -> None:
    text = Proposal.of([]).text()
    assert all(len(line) < 80 for line in text.splitlines())
    lines = text.splitlines()
    for before, line in pairwise(lines):
        if "=" in line and not line.startswith("#"):
            assert before.startswith("# "), line


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "soak.toml"
    write_proposal(Proposal.of([]), path)
    assert load_config(path) == Proposal.of([]).config
    before = path.read_bytes()
    with pytest.raises(UsageError, match="give another name"):
        write_proposal(Proposal.of([]), path)
    assert path.read_bytes() == before
    with pytest.raises(UsageError, match="cannot be written"):
        write_proposal(Proposal.of([]), tmp_path / "no" / "directory")


texts = st.text(st.characters(categories=["L", "N", "P", "Zs"]), max_size=60)


@given(st.lists(st.builds(Finding, texts, st.sampled_from(State), texts, texts), max_size=4))
@deterministic
def test_json_has_every_line(findings: list[Finding]) -> None:
    document = json.loads(json_of([section("kernel", findings)]))
    assert document["format"] == 1
    assert [line["says"] for line in document["kernel"]] == [found.says for found in findings]
    assert {line["state"] for line in document["kernel"]} <= {"ok", "miss", "no"}


def test_the_survey_fits_80_columns() -> None:
    sections = survey()
    assert all(len(line) < 80 for line in text_of(sections).splitlines())
    assert len(text_of(sections, brief=True)) < len(text_of(sections))
    assert [part.key for part in sections] == ["kernel", "device_dax", "file_systems", "functions"]


def test_a_refusal_has_every_reason_and_remedy() -> None:
    found = refused("x", "a thing", [Objection("one", "do a"), Objection("two", "do b")], {})
    assert found.says == "a thing: one; two"
    assert found.remedy == "do a; do b"


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    return dax_soak("check", *arguments)


def test_a_configuration_is_checked_against_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "soak.toml"
    path.write_text(
        '[vfio]\ndevices = ["0000:ff:1f.7"]\n[workload]\nmappers = 0\n'
        '[[region]]\nname = "memory"\nkind = "anonymous"\n'
        f'[[region]]\nname = "files"\nkind = "fs-dax"\npath = "{tmp_path}"\n'
        '[[region]]\nname = "device"\nkind = "device-dax"\npath = "/dev/null"\n'
    )
    told = check("-c", str(path), "--json")
    assert told.returncode == 2
    lines = {line["subject"]: line for line in json.loads(told.stdout)["config"]}
    assert lines["memory"]["state"] == "ok"
    assert "pmem namespace" in lines["files"]["says"]
    assert "not a device-dax" in lines["device"]["says"]
    assert "no such function" in lines["0000:ff:1f.7"]["says"]
    assert sorted(tmp_path.iterdir()) == [path]
    path.write_text('[workload]\nmappers = 0\n[[region]]\nname = "memory"\nkind = "anonymous"\n')
    assert check("-c", str(path)).returncode == 0
    with path.open("a") as file:
        file.write("[known-issues]\nnobody-knows = false\n")
    told = check("-c", str(path))
    assert told.returncode == 2
    assert "unknown issue 'nobody-knows'" in told.stdout.replace("\n", " ")
    assert check("-c", str(tmp_path / "none")).returncode == 2


def test_mappers_need_a_function_each(tmp_path: Path) -> None:
    path = tmp_path / "soak.toml"
    path.write_text('[workload]\nmappers = 2\n[[region]]\nname = "memory"\nkind = "anonymous"\n')
    told = check("-c", str(path), "--json")
    assert told.returncode == 2
    lines = {line["subject"]: line for line in json.loads(told.stdout)["config"]}
    assert "2 mappers need 3 PCI functions" in lines["mappers"]["says"]
    assert "[vfio] devices has 0" in lines["mappers"]["says"]


def test_check_prints_text_and_json(tmp_path: Path) -> None:
    path = tmp_path / "soak.toml"
    told = check("--json", "--write", str(path))
    document = json.loads(told.stdout)
    assert list(document) == ["format", "lab", "kernel", "device_dax", "file_systems", "functions"]
    lacking = [line for line in document["lab"] if line["state"] != "ok"]
    assert told.returncode == (2 if lacking else 0)
    # It fits the machine that it was written on.
    assert check("-c", str(path)).returncode == 0
    again = check("--write", str(path))
    assert again.returncode == 2
    assert "give another name" in again.stderr
    for text in (check().stdout, check("--all").stdout):
        assert all(len(line) < 80 for line in text.splitlines())
        assert "Device DAX" in text


def test_contradicting_options_are_refused() -> None:
    told = check("--install", "-c", "soak.toml")
    assert told.returncode == 2
    assert "not allowed with" in told.stderr


README = (ROOT / "soak/machine/README.md").read_text()


def test_the_readme_lists_every_json_key() -> None:
    device = DaxDevice("dax0.0", "kmem", 1, 1, 0, 0, "1:1", "ram")
    file_system = judge_disk("pmem0", FSDAX, None)
    function = PciFunction(
        "0000:00:05.0",
        "1234",
        "11e8",
        "00ff00",
        "",
        None,
        (),
        (),
        (),
        devices=frozenset(),
        virtual_functions=0,
        is_console=False,
    )
    for name, facts in {
        "device_dax": judge_device(device).facts,
        "file_systems": file_system.facts,
        "functions": function.facts(),
        "kernel": kernel_findings()[0].facts,
    }.items():
        row = next(line for line in README.splitlines() if line.startswith(f"| `{name}`"))
        for key in facts:
            assert f"`{key}`" in row
    for key in Finding("", State.OK, "").to_json():
        assert f"`{key}`" in README
