# SPDX-License-Identifier: GPL-2.0-only
"""Everything that `dax-soak check` looks at: as sections of lines for people, as JSON for programs."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from soak.abi.procfs import kernel_release
from soak.machine.check_line import Finding, State
from soak.machine.dax import device_findings, file_system_findings
from soak.machine.kernel import kernel_findings
from soak.machine.pci import TURN_ON, finding, pci_functions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FORMAT: Final = 1
_KERNEL: Final = "kernel"
_HARDWARE: Final = frozenset(("device_dax", "file_systems", "functions"))
_WIDTH: Final = 79
_SUBJECT: Final = 13


@dataclass(frozen=True)
class Section:
    """Findings of one kind. `key` is its name in JSON; `empty` is said where there are none."""

    key: str
    title: str
    findings: tuple[Finding, ...]
    empty: str = ""

    @property
    def fit(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.state is State.OK]


def survey() -> list[Section]:
    """Look at this machine's kernel and hardware."""
    return [
        Section(_KERNEL, f"Kernel, Linux {kernel_release()}", tuple(kernel_findings())),
        Section(
            "device_dax",
            "Device DAX",
            tuple(device_findings()),
            "none: this machine has no persistent memory in devdax mode ('ndctl create-namespace "
            "-m devdax' makes some where there is an NVDIMM), so there is no region of kind device-dax",
        ),
        Section(
            "file_systems",
            "DAX file systems",
            tuple(file_system_findings()),
            "none: this machine has no pmem disk ('ndctl create-namespace -m fsdax' makes one where "
            "there is an NVDIMM), so there is no region of kind fs-dax",
        ),
        _functions(),
    ]


def _functions() -> Section:
    """Judge the endpoints; bridges and the like are none, and without an IOMMU nothing is fit."""
    functions = [function for function in pci_functions() if not function.is_bridge]
    grouped = [function for function in functions if function.group is not None]
    if functions and not grouped:
        return Section(
            "functions",
            "PCI functions",
            (),
            f"none can be given to vfio, for none of the {len(functions)} has an IOMMU group: {TURN_ON}",
        )
    return Section(
        "functions",
        "PCI functions",
        tuple(finding(function) for function in functions),
        "none: this machine shows no PCI function but bridges",
    )


def has_hardware(sections: Sequence[Section]) -> bool:
    """Say whether there is anything of this machine's own that a soak could be about."""
    return any(section.findings for section in sections if section.key in _HARDWARE)


def text_of(sections: Sequence[Section], *, brief: bool = False) -> str:
    """Write sections for a terminal of 80 columns; `brief` tells of the kernel by names alone."""
    parts = []
    for section in sections:
        lines = [section.title]
        if brief and section.key == _KERNEL:
            lines += _names(section)
        else:
            lines += [_lines(finding) for finding in section.findings]
        if not section.findings:
            lines.append(_filled(section.empty, "      "))
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def json_of(sections: Sequence[Section]) -> str:
    """Write the same as one JSON document, whose keys stay what they are while `format` does."""
    document = {
        "format": FORMAT,
        **{section.key: [found.to_json() for found in section.findings] for section in sections},
    }
    return json.dumps(document, indent=2) + "\n"


def _names(section: Section) -> Iterator[str]:
    for state, first in ((State.OK, "ok    "), (State.MISSING, "MISS  ")):
        names = [found.subject for found in section.findings if found.state is state]
        if names:
            yield _filled(", ".join(names), first)


def _lines(found: Finding) -> str:
    first = f"{found.state:<4}  {found.subject:<{_SUBJECT}}"
    says = f"{found.says}; {found.remedy}" if found.remedy else found.says
    if len(found.subject) < _SUBJECT:
        return _filled(says, first)
    # A long name has a line of its own.
    return f"{first}\n{_filled(says, ' ' * (6 + _SUBJECT))}"


def _filled(text: str, first: str) -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )
