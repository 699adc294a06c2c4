# SPDX-License-Identifier: GPL-2.0-only
"""Checks each region, PCI function and block device of a configuration against this machine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from soak.abi.openers import Device
from soak.errors import UsageError
from soak.machine.blocks import disk_users, opened
from soak.machine.check_line import Finding, Objection, State, refused
from soak.machine.dax import size_text
from soak.machine.pci import PciFunction, objections
from soak.machine.survey import Section
from soak.regions import check_apart, examine_region
from soak.regions.transfer_disks import contents_problem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from soak.config.sections import Config
    from soak.regions import Region

    Planner = Callable[[Config, Sequence[Region]], "Plan"]

_ENDING_SECONDS: Final = 3.0
_POLL_SECONDS: Final = 0.2


class Plan(Protocol):
    """The hardware that a run needs."""

    @property
    def functions(self) -> int:
        """PCI functions, one of them for probes."""


def check_config(config: Config, plan: Planner) -> Section:
    """Judge everything that a configuration names, without changing anything.

    `plan` raises UsageError if no run can be planned on the regions found.
    """
    findings: list[Finding] = []
    regions: list[Region] = []
    for section in config.regions:
        try:
            region = examine_region(section)
            check_apart([*regions, region])
        except UsageError as error:
            findings.append(Finding(section.name, State.NO, str(error)))
        else:
            regions.append(region)
            what = f"{region.kind}, {size_text(region.size)}"
            text = f"{what} of {section.path}" if section.path else what
            findings.append(Finding(region.name, State.OK, text))
    findings += _functions(config)
    if len(regions) == len(config.regions):
        try:
            findings += _missing_functions(config, plan(config, regions).functions)
        except UsageError as error:
            findings.append(Finding("workload", State.NO, str(error)))
    for path in (*config.workload.slow_devices, *config.workload.fast_devices):
        found = disk_objections(Path(path))
        findings.append(
            refused(path, "a disk for O_DIRECT", found, {})
            if found
            else Finding(path, State.OK, "an unused, empty disk for O_DIRECT")
        )
    return Section(
        "config", "Configuration", tuple(findings), "it names no region and no device: add one"
    )


def _functions(config: Config) -> list[Finding]:
    findings = []
    wanted = config.vfio.devices
    groups: dict[str | None, str] = {}
    for address in wanted:
        found = objections(address)
        if not found:
            group = PciFunction.read(address).group
            if group in groups:
                found.append(
                    Objection(
                        f"it shares IOMMU group {group} with {groups[group]}, and only one process can "
                        f"open a group",
                        "name only one of them",
                    )
                )
            groups.setdefault(group, address)
        findings.append(
            refused(address, "cannot be given to vfio", found, {})
            if found
            else Finding(address, State.OK, "can be given to vfio")
        )
    return findings


def _missing_functions(config: Config, needed: int) -> list[Finding]:
    """Report that the mappers need more PCI functions than the configuration names."""
    given, mappers = len(config.vfio.devices), needed - 1
    if not mappers or given >= needed:
        return []
    return [
        Finding(
            "mappers",
            State.NO,
            f"{mappers} mappers need {needed} PCI functions, one for each and one for probes; "
            f"[vfio] devices has {given}",
            "name more functions, or lower [workload] mappers",
        )
    ]


def require_fit_config(config: Config, plan: Planner) -> None:
    """Refuse a configuration that names a missing resource, or one that must not be used.

    Retries for a few seconds: workers of a dead soak may still be exiting.

    Raises:
        UsageError: with every obstacle and its remedy.
    """
    deadline = time.monotonic() + _ENDING_SECONDS
    while refusals := [
        f"{found.subject}: {found.says.rstrip('.')}{f' ({found.remedy})' if found.remedy else ''}."
        for found in check_config(config, plan).findings
        if found.state is State.NO
    ]:
        if time.monotonic() > deadline:
            raise UsageError(f"This machine does not fit the configuration. {' '.join(refusals)}")
        time.sleep(_POLL_SECONDS)


def disk_objections(path: Path) -> list[Objection]:
    """Return every reason why a block device must not be written to; empty if it may be."""
    try:
        device = Device.of(path.stat())
    except OSError as error:
        return [Objection(f"{error.strerror}", "name an existing block device")]
    if device is None or device.letter != "b":
        return [Objection("it is not a block device", "name one such as /dev/ram0")]
    name = (Path("/sys/dev/block") / device.number).resolve().name
    found = disk_users([name]) or opened([name], ())
    if not found and (problem := contents_problem(path)):
        found = [
            Objection(problem, f"name another disk, or erase this one with 'blkdiscard --zeroout {path}'")
        ]
    return found
