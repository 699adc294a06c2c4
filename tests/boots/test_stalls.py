# SPDX-License-Identifier: GPL-2.0-only
"""Truncate against DMA on real kernels: what sleeps on, what wakes late, and what is right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.boots.harness.evidence import check_stall_evidence
from tests.boots.harness.kernels import QUICK_KERNEL
from tests.boots.harness.lab import COVERING, FULL_LOAD, STEADY, lab
from tests.boots.harness.script import guest_program, seen_in_guest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.boots.harness.lab import LabProcess

pytestmark = pytest.mark.lab

WAITS = ("stall", "late-wakeup", "early-truncate")
REMAPPED = "remapped-page-stall"
LOST_WAKEUP = "o-direct-lost-wakeup"


def trials(process: LabProcess) -> int:
    """Return how many trials are over."""
    with process.ledger() or pytest.fail("there is no ledger") as reader:
        return reader.block("trial-invalidator-0").get("trial_over")


def hangs_or_is_freed(process: LabProcess) -> None:
    """Wait for the worker that hangs, or for so many trials that one should have."""
    enough = trials(process) + 25
    process.wait_until(
        "the worker hangs", lambda: process.events("worker.wedged") != [] or trials(process) > enough
    )


def waits(process: LabProcess) -> list[dict[str, object]]:
    return [entry for kind in WAITS for entry in process.violations(kind)]


@pytest.mark.parametrize(
    "filesystem",
    # A resumed run shows the same on xfs, in test_life.py.
    [pytest.param(name, marks=pytest.mark.long) for name in ("ext4", "xfs")],
)
def test_a_correct_kernel_has_no_stalls(tmp_path: Path, filesystem: str) -> None:
    """One that the probes find right shows nothing in all the trials, also where it stands still."""
    arguments = ("--kernel", QUICK_KERNEL, "--filesystem", filesystem, "--duration", "1h")
    with lab(tmp_path / "run", *arguments, workload=FULL_LOAD) as process:
        process.wait_until("trials go on", lambda: process.operations() > 2000)
        process.stand_still()
        assert process.finish_when_covered() == 0, process.stdout
        lost = [event["lost"] for event in process.events("known-issue.probed") if "lost" in event]
        assert lost == [False, False]
        assert waits(process) == []


@pytest.mark.long
def test_an_inconclusive_probe_is_settled_later(tmp_path: Path) -> None:
    """A transfer that ends at once leaves nothing to wait for: no stall of that run fails it."""
    script = guest_program("probes")
    seen = seen_in_guest(tmp_path, script, kernel="debian:6.1")
    tried, shown = seen["inconclusive"]
    assert set(tried) == {"inconclusive"}
    assert shown == {"probe_inconclusive": 1}
    assert seen["settled"] == ["confirmed", {"probe_inconclusive": 0, "confirmed": 1}]
    stalls = [entry for entry in seen["found"] if entry["kind"] == "stall"]
    assert any(entry["undecided"] == LOST_WAKEUP for entry in stalls)
    assert {entry["interface"] for entry in stalls} == {"o-direct"}
    verdict = seen["verdict"]
    assert verdict["verdict"] != "fail", verdict["reasons"]
    assert {entry["known_issue"] for entry in verdict["violations"]} == {
        LOST_WAKEUP,
        "type1-device-dax-leak",
    }


def test_trials_agree_with_the_remapped_probe(tmp_path: Path) -> None:
    """The newest kernel: whatever it does, the probe and the trials have to agree on it."""
    with lab(
        tmp_path / "run", "--kernel", "debian:sid", "--duration", "1h", workload=COVERING
    ) as process:
        assert process.finish_when_covered() == 0, process.stdout
        probe = next(
            event for event in process.events("known-issue.probed") if event["known_issue"] == REMAPPED
        )
        found = waits(process)
        assert {entry["known_issue"] for entry in found} == ({REMAPPED} if probe["lost"] else set())
        if probe["lost"]:
            # The end of the mapping ended it: it was that, and no pin, that it waited for.
            assert probe["unmapped"]
            assert probe["control"]["woken"]
            check_stall_evidence(process)
            # Of a trial there is one pin, which vmsplice takes once; other files are pinned by many.
            tried = {
                event["interface"]
                for event in process.events("violation.found")
                if event["kind"] in WAITS and event["evidence"]["worker"].startswith("trial-")
            }
            assert tried
            assert "vmsplice" not in tried


def test_wedged_workers_are_replaced_then_end_the_run(tmp_path: Path) -> None:
    """Unlink of a file with a pinned page, where that waits: SIGKILL does nothing to it.

    To a bisection the commit is bad.
    """
    config = tmp_path / "soak.toml"
    # Until its turn comes, each operation on the file stalls and is freed: sooner than usual here.
    config.write_text(
        "[limits]\nwedged-workers = 0\n[stall]\nlate = '300ms'\nthreshold = '600ms'\n"
        f"[workload]\n{STEADY}"
    )
    # Of the first sixty trials of this seed, no more than ten lie between two that unlink.
    arguments = (
        "--kernel",
        "debian:sid",
        "-c",
        str(config),
        "--duration",
        "1h",
        "--seed",
        "26",
        "--bisect",
    )
    with lab(tmp_path / "run", *arguments) as process:
        process.soaks()
        while not process.events("worker.wedged"):
            # What nobody maps is not waited for: a trial of such a file before may have freed the page.
            process.plant("stuck-page")
            hangs_or_is_freed(process)
        assert process.finish() == 1, process.stdout
        (wedged,) = process.events("worker.wedged")
        assert wedged["worker"] == "trial-invalidator-0"
        assert wedged["task"]["state"] == "D"
        assert "unlink" in {entry["operation"] for entry in process.violations("stall")}
        (ended,) = process.events("run.ended")
        assert ended["why"] == "1 workers are wedged in the kernel"
        assert process.events("limit.reached")
        with process.ledger() or pytest.fail("there is no ledger") as reader:
            replaced = reader.block("trial-invalidator-0")
            assert replaced.get("generation") == 1
            assert replaced.get("incarnation") == 2
            assert reader.block("supervisor").named("wedged")["trial-invalidator-0"] == 1
