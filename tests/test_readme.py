# SPDX-License-Identifier: GPL-2.0-only
"""The README stays true: it names every key, option, verdict, fault and command that there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from exporter.catalogue import METRICS, PREFIX
from soak.cli import main
from soak.config.sections import SECTIONS
from soak.lab.guest.faults import FAULTS
from soak.lab.kernels.store import KERNEL_NAMES
from soak.model.exit_codes import BISECT, INTERRUPTED, PLAIN
from soak.model.vocabulary import DetectorName, VerdictWord, Violation
from soak.report.reference import with_table

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_reference_of_the_configuration_is_made_from_the_code() -> None:
    """Where this fails, `make readme` writes it anew."""
    assert with_table(README) == README
    for section in SECTIONS:
        assert f"`[{section}] " in README


@pytest.mark.parametrize("word", [*Violation, *VerdictWord, *DetectorName])
def test_every_verdict_and_kind_of_violation_is_named(word: str) -> None:
    assert re.search(rf"\b{word}\b", README)


def test_faults_that_are_shown_exist() -> None:
    shown = re.findall(r"--fault ([a-z-]+):", README)
    assert shown
    assert set(shown) <= set(FAULTS)


def test_metrics_that_are_named_exist() -> None:
    names = {metric.full_name.removeprefix(PREFIX) for metric in METRICS}
    table = README[README.index("## Metrics") : README.index("## Troubleshooting")]
    named = re.findall(r"^\| `([a-z_]+)", table, re.MULTILINE)
    assert named
    assert set(named) <= names


def test_both_commands_are_named() -> None:
    assert "make soak" in README
    assert "make test" in README


@pytest.mark.parametrize("name", KERNEL_NAMES)
def test_every_kernel_is_named(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Where an option is explained: here, and by the command itself."""
    row = next(line for line in README.splitlines() if line.startswith("| `--kernel`"))
    assert f"`{name}`" in row
    with pytest.raises(SystemExit):
        main(["lab", "--help"])
    assert name in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("code", [*PLAIN.verdicts.values(), PLAIN.usage, PLAIN.crash, INTERRUPTED])
def test_every_exit_code_is_in_the_table(code: int) -> None:
    assert re.search(rf"\b{code}\b", _exit_codes()[1])


@pytest.mark.parametrize(
    "code", [*BISECT.verdicts.values(), BISECT.usage, BISECT.crash, INTERRUPTED]
)
def test_every_exit_code_of_a_bisection_is_in_the_table(code: int) -> None:
    assert re.search(rf"\b{code}\b", _exit_codes()[2])


def _exit_codes() -> list[str]:
    """Return the columns of the table of exit codes, each as one text."""
    table = README[README.index("| verdict | exit code |") :].partition("\n\n")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines()]
    return [" ".join(column) for column in zip(*rows, strict=True)]
