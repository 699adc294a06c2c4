# SPDX-License-Identifier: GPL-2.0-only
"""The survey of `dax-soak check`, as text or as JSON."""

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
    """Findings of one kind. `key` is its name in JSON; `empty` is the text if it has no finding."""

    key: str
    title: str
    findings: tuple[Finding, ...]
    empty: str = ""

    @property
    def fit(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.state is State.OK]


def survey() -> list[Section]:
    """Inspect this machine's kernel and hardware."""
    return [
        Section(_KERNEL, f"Kernel, Linux {kernel_release()}", tuple(kernel_findings())),
        Section(
            "device_dax",
            "Device DAX",
            tuple(device_findings()),
            "none: this machine has no namespace in devdax mode; with an NVDIMM, 'ndctl "
            "create-namespace -m devdax' makes one",
        ),
        Section(
            "file_systems",
            "DAX file systems",
            tuple(file_system_findings()),
            "none: this machine has no pmem disk; with an NVDIMM, 'ndctl create-namespace -m fsdax' "
            "makes one",
        ),
        _functions(),
    ]


def _functions() -> Section:
    """Judge every function but bridges; without an IOMMU none is usable."""
    functions = [function for function in pci_functions() if not function.is_bridge]
    grouped = [function for function in functions if function.group is not None]
    if functions and not grouped:
        return Section(
            "functions",
            "PCI functions",
            (),
            f"none can be given to vfio: none of the {len(functions)} has an IOMMU group; {TURN_ON}",
        )
    return Section(
        "functions",
        "PCI functions",
        tuple(finding(function) for function in functions),
        "none: this machine has no PCI function but bridges",
    )


def has_hardware(sections: Sequence[Section]) -> bool:
    """Return whether this machine has any hardware that a soak could test."""
    return any(section.findings for section in sections if section.key in _HARDWARE)


def text_of(sections: Sequence[Section], *, brief: bool = False) -> str:
    """Format sections for a terminal of 80 columns; `brief` lists kernel features by name alone."""
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
    """Format sections as one JSON document; its keys are fixed for a given `format`."""
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
    # A long subject has its own line.
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
