# SPDX-License-Identifier: GPL-2.0-only
"""The pages stay true: they name every command, option, key, verdict, fault and metric that there is."""

from __future__ import annotations

import re

import pytest

from exporter.catalogue import METRICS, PREFIX
from soak.cli import main
from soak.config.sections import SECTIONS
from soak.lab.guest.faults import FAULTS
from soak.lab.kernels.store import KERNEL_NAMES
from soak.model.exit_codes import BISECT, INTERRUPTED, PLAIN
from soak.model.vocabulary import DetectorName, VerdictWord, Violation
from soak.report.reference import with_tables
from tests.support.program import ROOT

PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (
        *ROOT.glob("*.md"),
        *(path for place in ("soak", "exporter") for path in (ROOT / place).rglob("*.md")),
    )
}
README = PAGES["README.md"]
EVERYTHING = "\n".join(PAGES.values())
MOST_LINES = 200


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= MOST_LINES


@pytest.mark.parametrize("page", ["soak/config/README.md", "exporter/README.md"])
def test_reference_tables_match_the_code(page: str) -> None:
    """Where this fails, `make readme` writes them anew."""
    assert "made by 'make readme'" in PAGES[page]
    assert with_tables(PAGES[page]) == PAGES[page]


def test_every_section_and_metric_is_in_its_reference() -> None:
    for section in SECTIONS:
        assert f"`[{section}] " in PAGES["soak/config/README.md"]
    for metric in METRICS:
        assert f"`{metric.full_name}`" in PAGES["exporter/README.md"]


@pytest.mark.parametrize("page", PAGES)
def test_link_targets_exist(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGES[page]):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    return capsys.readouterr().out


def test_every_command_and_option_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    commands = re.findall(r"^    ([a-z-]+)(?: |$)", help_of(capsys), re.MULTILINE)
    assert {"lab", "run", "top", "exporter", "check", "restore"} <= set(commands)
    missing = [f"dax-soak {word}" for word in commands if f"dax-soak {word}" not in EVERYTHING]
    for word in commands:
        options = set(re.findall(r"(?<![\w-])--[a-z-]+", help_of(capsys, word))) - {"--help"}
        missing += [f"{word} {option}" for option in options if option not in EVERYTHING]
    assert sorted(missing) == []


@pytest.mark.parametrize("word", [*Violation, *VerdictWord, *DetectorName])
def test_every_verdict_and_kind_of_violation_is_named(word: str) -> None:
    assert re.search(rf"\b{word}\b", README)


def test_shown_faults_exist() -> None:
    shown = re.findall(r"--fault ([a-z-]+):", EVERYTHING)
    assert shown
    assert set(shown) <= set(FAULTS)


def test_named_metrics_exist() -> None:
    names = {metric.full_name.removeprefix(PREFIX) for metric in METRICS}
    table = README[README.index("## What to alert on") : README.index("## Troubleshooting")]
    named = re.findall(r"^\| `([a-z_]+)", table, re.MULTILINE)
    assert named
    assert set(named) <= names


def test_both_make_targets_are_named() -> None:
    assert "make soak" in README
    assert "make test" in README


@pytest.mark.parametrize("name", KERNEL_NAMES)
def test_every_kernel_is_named(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Where an option is explained: here, and by the command itself."""
    row = next(
        line for line in PAGES["soak/lab/README.md"].splitlines() if line.startswith("| `--kernel`")
    )
    assert f"`{name}`" in row
    with pytest.raises(SystemExit):
        main(["lab", "--help"])
    assert name in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("code", [*PLAIN.verdicts.values(), PLAIN.usage, PLAIN.crash, INTERRUPTED])
def test_every_exit_code_is_in_the_table(code: int) -> None:
    assert re.search(rf"\b{code}\b", _exit_codes()[1])


@pytest.mark.parametrize("code", [*BISECT.verdicts.values(), BISECT.usage, BISECT.crash, INTERRUPTED])
def test_every_bisect_exit_code_is_in_the_table(code: int) -> None:
    assert re.search(rf"\b{code}\b", _exit_codes()[2])


def _exit_codes() -> list[str]:
    """Return the columns of the table of exit codes, each as one text."""
    table = README[README.index("| verdict | exit code |") :].partition("\n\n")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines()]
    return [" ".join(column) for column in zip(*rows, strict=True)]
