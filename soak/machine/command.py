# SPDX-License-Identifier: GPL-2.0-only
"""`dax-soak check`: what this machine offers and lacks, and whether a configuration fits it."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING, Final

from soak.config.sections import load_config
from soak.machine.check_line import State
from soak.machine.fitness import check_config
from soak.machine.proposal import Proposal, write_proposal
from soak.machine.survey import Section, has_hardware, json_of, survey, text_of

if TYPE_CHECKING:
    from pathlib import Path

    from soak.machine.fitness import Planner

_WIDTH: Final = 79


def check_machine(lab: Section, *, as_json: bool, everything: bool, write: Path | None) -> int:
    """Print what the machine offers; return 0 if the lab, which needs no hardware, can run here, else 2.

    Raises:
        UsageError: the configuration cannot be written.
    """
    found = survey()
    if write is not None:
        write_proposal(Proposal.of(found), write)
    _show([lab, *found], as_json=as_json, brief=not everything and not has_hardware(found))
    if not as_json:
        sys.stdout.write(f"\n{_conclusion(lab, found)}\n")
    if write is not None:
        sys.stderr.write(f"Written: {write}\n")
    return 0 if len(lab.fit) == len(lab.findings) else 2


def check_against(path: Path, plan: Planner, *, as_json: bool) -> int:
    """Print whether a configuration fits the machine; return 0 if it does, else 2.

    Raises:
        UsageError: the file is not a valid configuration.
    """
    section = check_config(load_config(path), plan)
    _show([section], as_json=as_json, brief=False)
    fits = section.findings and all(found.state is State.OK for found in section.findings)
    return 0 if fits else 2


def _show(sections: list[Section], *, as_json: bool, brief: bool) -> None:
    sys.stdout.write(json_of(sections) if as_json else text_of(sections, brief=brief))


def _conclusion(lab: Section, found: list[Section]) -> str:
    if has_hardware(found):
        text = (
            "'dax-soak check --write soak.toml' writes a configuration for the usable hardware, and "
            "'dax-soak check -c soak.toml' checks a configuration against this machine."
        )
    else:
        text = (
            "This machine has no hardware to soak. The lab needs none and boots its own kernel "
            "('--all' shows what each missing feature costs)."
        )
    if len(lab.fit) < len(lab.findings):
        text += " The lab cannot run here until its missing parts are installed."
    return textwrap.fill(text, _WIDTH, break_on_hyphens=False)
