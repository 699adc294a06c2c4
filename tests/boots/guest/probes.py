# SPDX-License-Identifier: GPL-2.0-only
"""Run in a guest: a soak whose slow disk is quick at first, so that a probe cannot tell anything.

It reports what it saw; tests/boots/test_stalls.py asserts.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any, Final

from soak.lab.guest.disks import make_disks
from tests.boots.harness.guest_run import COVERING, Run, configure, listen_on_loopback, metrics
from tests.boots.harness.in_guest import report

CONFIG: Final = Path("/run/soak.toml")
SLOW: Final = Path("/run/slow")
ISSUE: Final = "o-direct-lost-wakeup"


def results(run: Run) -> list[str]:
    probed = run.events("known-issue.probed")
    return [event["result"] for event in probed if event["known_issue"] == ISSUE]


def exported() -> dict[str, float]:
    """Return the two metrics of the issue, by name."""
    label = f'{{known_issue="{ISSUE}"}}'
    lines = (line.split() for line in metrics().splitlines() if label in line)
    return {
        name.removeprefix("dax_soak_known_issue_").removesuffix(label): float(value)
        for name, value in lines
        if name.startswith("dax_soak_known_issue_")
    }


def violations(run: Run) -> list[dict[str, Any]]:
    names = ("kind", "interface", "known_issue", "undecided")
    return [{name: event[name] for name in names} for event in run.events("violation.found")]


def main() -> None:
    listen_on_loopback()
    disks = make_disks()
    slow, other = disks["slow-devices"]
    (quick,) = disks["fast-devices"]
    SLOW.symlink_to(quick)
    configure(CONFIG, "30m", rate=COVERING)
    keys = f'slow-devices = ["{SLOW}"]\nfast-devices = ["{other}"]\n'
    CONFIG.write_text(CONFIG.read_text().replace("[leaks]", f"{keys}[leaks]"))
    run = Run(CONFIG)
    run.soaks()
    run.until("a stall, and another try", lambda: len(results(run)) > 1 and undecided(run))
    report("inconclusive", [results(run), exported()])
    # From now on it is as slow as it should be.
    replacement = SLOW.with_name("slower")
    replacement.symlink_to(slow)
    replacement.rename(SLOW)
    run.until("a result", lambda: results(run)[-1] != "inconclusive")
    run.until("its metric", lambda: not exported()["probe_inconclusive"])
    report("settled", [results(run)[-1], exported()])
    report("code", run.end(signal.SIGTERM))
    report("found", violations(run))
    report("verdict", run.verdict())


def undecided(run: Run) -> bool:
    return any(entry["undecided"] == ISSUE for entry in violations(run))


main()
