"""`dax-soak check`: what this machine offers, what it lacks, and whether a configuration fits it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from soak.config import load_config
from soak.machine.finding import State
from soak.machine.fitness import check_config
from soak.machine.proposal import Proposal, write_proposal
from soak.machine.survey import Section, json_of, survey, text_of

if TYPE_CHECKING:
    from pathlib import Path


def check_machine(lab: Section, *, as_json: bool, write: Path | None) -> int:
    """Tell what the machine offers; return 0 where the lab, which needs no hardware, can run here.

    Raises:
        UsageError: the configuration cannot be written.
    """
    found = survey()
    if write is not None:
        write_proposal(Proposal.of(found), write)
    _show([lab, *found], as_json=as_json)
    if write is not None:
        sys.stderr.write(f"Written: {write}\n")
    return 0 if len(lab.fit) == len(lab.findings) else 2


def check_against(path: Path, *, as_json: bool) -> int:
    """Tell whether a configuration fits the machine; return 0 where it does, else 2.

    Raises:
        UsageError: it is no configuration.
    """
    section = check_config(load_config(path))
    _show([section], as_json=as_json)
    fits = section.findings and all(found.state is State.OK for found in section.findings)
    return 0 if fits else 2


def _show(sections: list[Section], *, as_json: bool) -> None:
    sys.stdout.write(json_of(sections) if as_json else text_of(sections))
