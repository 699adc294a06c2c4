# SPDX-License-Identifier: GPL-2.0-only
"""The command line: what is wrong is told in one sentence, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from soak import __version__, run_directory
from soak.cli import main
from soak.lab.guest.faults import FAULTS, parse_fault
from soak.model.known_issues import KNOWN_ISSUES
from soak.workload.expectations import EXPECTATIONS
from soak.workload.scenarios import SCENARIOS
from tests.support.program import ROOT
from tests.support.soak import DEADLINE

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have everything that is kept land here, and make the cache a place where nothing can be.

    Whoever touches the cache fails at once and loudly, and never fetches anything.
    """
    (tmp_path / "no-directory").write_text("")
    monkeypatch.setenv("DAX_SOAK_CACHE", str(tmp_path / "no-directory" / "cache"))
    monkeypatch.setattr(run_directory, "runs_directory", lambda: tmp_path / "runs")
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must be refused, and return its one sentence."""
    try:
        code = main(arguments)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err
    # The usage may stand before it.
    *before, sentence = captured.err.splitlines()
    assert not before or before[0].startswith("usage: ")
    assert sentence.startswith("dax-soak")
    return sentence


def left_behind(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--kernel", "debian:5.4"], ["'debian:5.4'", "debian:6.1"]),
        (["--kernel", "redhat:9"], ["'redhat:9'", "debian:6.1"]),
        (["--kernel", "/no/such/bzImage"], ["'/no/such/bzImage'", "No such file"]),
        (["--kernel", f"{ROOT}/pyproject.toml"], ["pyproject.toml'", "not an x86 boot image"]),
        (["--kernel", str(ROOT)], [str(ROOT)]),
        (["--duration", "soon"], ["'soon'", "90s"]),
        (["--duration", "0s"], ["'0s'", "90s"]),
        (["--duration", "-5"], ["--duration"]),
        (["--seed", "x"], ["'x'", "whole number"]),
        (["--seed", "-1"], ["--seed"]),
        (["--seed", "1.5"], ["'1.5'", "whole number"]),
        (["--seed", str(2**63)], [str(2**63), "whole number"]),
        (["--scenario", "nonsense"], ["'nonsense'", "mixed"]),
        (["--fault", "earthquake"], ["'earthquake'", "panic"]),
        (["--fault", "panic:soon"], ["'soon'", "panic:20"]),
        (["--fault", "panic:"], ["''", "panic:20"]),
        (["--fault", "panic:-1"], ["'-1'", "panic:20"]),
        (["--fault", "panic:nan"], ["'nan'", "panic:20"]),
        (["--fault", "panic:inf"], ["'inf'", "panic:20"]),
        (["--listen", "9823"], ["'9823'", "HOST:PORT"]),
        (["--listen", "127.0.0.1:99999"], ["'127.0.0.1:99999'", "HOST:PORT"]),
        (["--filesystem", "btrfs"], ["'btrfs'", "ext4"]),
        (["--accel", "warp"], ["'warp'", "kvm"]),
        (["-c", "/no/such/soak.toml"], ["'/no/such/soak.toml'", "No such file"]),
        (["--no-such-option"], ["--no-such-option"]),
        (["--print-choices", "x"], ["'x'"]),
    ],
    ids=" ".join,
)
def test_invalid_lab_options_are_refused(
    outside: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: list[str]
) -> None:
    before = left_behind(outside)
    sentence = refusal(capsys, "lab", *arguments)
    for word in told:
        assert word in sentence
    assert left_behind(outside) == before


NO_CONFIGURATIONS = [
    ("[run]\nduraton = 5\n", ["run.duraton", "duration"]),
    ('[run]\nseed = "one"\n', ["run.seed", "'one'", "whole number"]),
    ("[run\n", ["not TOML"]),
    ('[[region]]\nname = "a"\nkind = "tape"\n', ["region[0].kind", "'tape'", "fs-dax"]),
]
NO_PLANS = [
    ("[known-issues]\nno-such-issue = true\n", ["no-such-issue", "type1-device-dax-leak"]),
    (
        (
            '[[region]]\nname = "f"\nkind = "fs-dax"\npath = "lab"\nsize = "8M"\n'
            "[workload]\ninvalidators = 2\n"
        ),
        ["'f'", "2 invalidators"],
    ),
]


@pytest.mark.parametrize(
    ("command", "text", "told"),
    [
        *(("lab", *case) for case in [*NO_CONFIGURATIONS, *NO_PLANS]),
        *(("run", *case) for case in NO_CONFIGURATIONS),
    ],
)
def test_invalid_configuration_is_refused(
    outside: Path, capsys: pytest.CaptureFixture[str], command: str, text: str, told: list[str]
) -> None:
    path = outside / "soak.toml"
    path.write_text(text)
    before = left_behind(outside)
    sentence = refusal(capsys, command, "-c", str(path))
    for word in told:
        assert word in sentence
    assert left_behind(outside) == before


def test_a_run_directory_in_use_is_refused(outside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    used = outside / "used"
    used.mkdir()
    (used / "journal.jsonl").write_text("somebody's\n")
    before = left_behind(outside)
    sentence = refusal(capsys, "lab", "--run-dir", str(used))
    assert str(used) in sentence
    assert "not empty" in sentence
    assert left_behind(outside) == before
    assert (used / "journal.jsonl").read_text() == "somebody's\n"


@pytest.mark.parametrize("command", ["report", "exporter"])
def test_an_unknown_run_is_refused(
    outside: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    before = left_behind(outside)
    sentence = refusal(capsys, command, "no-such-run")
    assert "'no-such-run'" in sentence
    assert str(outside / "runs") in sentence
    assert left_behind(outside) == before


def test_a_command_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert "COMMAND" in refusal(capsys)
    assert "no-such-command" in refusal(capsys, "no-such-command")


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("expectations", {row.region for row in EXPECTATIONS}),
        ("known-issues", {issue.name for issue in KNOWN_ISSUES}),
        ("faults", set(FAULTS)),
        ("scenarios", set(SCENARIOS)),
    ],
)
def test_table_has_every_entry_and_fits_a_terminal(
    capsys: pytest.CaptureFixture[str], command: str, names: set[str]
) -> None:
    assert main([command]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert all(len(line) < 80 for line in captured.out.splitlines())
    for name in names:
        assert name in captured.out


@pytest.mark.parametrize("name", list(FAULTS))
def test_every_listed_fault_is_accepted(name: str) -> None:
    planned, delay = parse_fault(name)
    assert planned == name
    assert delay > 0
    assert parse_fault(f"{name}:2.5") == (name, 2.5)
    assert parse_fault(f"{name}:0") == (name, 0.0)


def test_planting_needs_a_known_fault_and_a_soak(
    outside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = refusal(capsys, "plant", "earthquake")
    assert "Unknown fault 'earthquake' (choose from hang, " in sentence
    run_directory = outside / "runs/run-1"
    run_directory.mkdir(parents=True)
    (run_directory / "journal.jsonl").touch()
    sentence = refusal(capsys, "plant", "panic", "run-1")
    assert "no soak is running" in sentence
    assert "Cannot plant the fault panic:" in sentence


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"dax-soak {__version__}\n"


@pytest.mark.parametrize("command", ["", "lab", "run", "check", "report", "exporter", "faults"])
def test_help_is_printed(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as left:
        main([*command.split(), "--help"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith("usage: dax-soak")


def run(*arguments: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """Run the command as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "soak.cli", *arguments],
        cwd=ROOT,
        check=False,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=DEADLINE,
    )


def test_process_exits_with_code_and_message() -> None:
    result = run("lab", "--fault", "earthquake")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("dax-soak: Unknown fault 'earthquake' (choose from ")
    assert run("--version").returncode == 0


def test_closed_pipe_is_not_an_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        result = run("lab", "--print-choices", "5000", stdout=writing)
    finally:
        os.close(writing)
    assert result.returncode == 0
    assert result.stderr == ""
