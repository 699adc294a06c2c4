# SPDX-License-Identifier: GPL-2.0-only
"""Exit codes as `git bisect run` reads them: nothing but a verdict may judge a commit."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soak import cli
from soak.lab import command
from soak.lab.host.boot_error import BootError
from soak.model.exit_codes import BISECT, INTERRUPTED, PLAIN, is_bisecting
from soak.model.vocabulary import VerdictWord
from tests.support.program import ROOT
from tests.support.soak import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

deterministic = settings(derandomize=True, database=None, deadline=None, max_examples=150)

MISTAKES = [
    ["lab", "--bisect", "--kernel", "redhat:9"],
    ["lab", "--bisect", "--kernel", "/no/such/tree"],
    ["lab", "--kernel", str(ROOT), "--bisect", "--strict"],
    ["lab", "--bisect", "--no-such-option"],
    ["lab", "--no-such-option", "--bisect"],
    ["lab", "--bisect", "--duration", "soon"],
    ["lab", "--duration", "--bisect"],
    ["lab", "--filesystem", "btrfs", "--bise"],
    ["lab", "--bisect=yes"],
    ["no-such-command", "--bisect"],
    ["run", "--bisect"],
]


@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
def test_usage_error_stops_a_bisection(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Argparse's own mistakes are mistakes as well."""
    assert cli.main(words) == 255
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.startswith("dax-soak: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
def test_same_usage_error_exits_with_2_otherwise(words: list[str]) -> None:
    plain = [word for word in words if not word.startswith("--bise")]
    if plain == ["lab"]:
        plain.append("--bad")
    assert cli.main(plain) == 2


def fails_with(error: BaseException) -> Callable[..., int]:
    def work(*_: object) -> int:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "plain", "bisecting"),
    [
        (BootError("The guest never answered."), 2, 125),
        (BootError("The guest died.", crashed=True), 2, 125),
        (BootError("QEMU did not start.", started=False), 2, 255),
        (KeyboardInterrupt(), 130, 130),
        # Of something else than its output, which nobody need read.
        (BrokenPipeError(), 70, 255),
    ],
    ids=repr,
)
def test_lab_without_verdict_has_its_own_code(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, plain: int, bisecting: int
) -> None:
    monkeypatch.setattr(command, "_lab", fails_with(error))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert cli.main(["lab"]) == plain
    assert cli.main(["lab", "--bisect"]) == bisecting


def test_crash_does_not_judge_a_commit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "_lab", fails_with(RuntimeError("a bug")))
    assert cli.main(["lab", "--bisect"]) == 255
    assert "RuntimeError: a bug" in capsys.readouterr().err
    assert cli.main(["lab"]) == PLAIN.crash
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["level"]) == ("program.crashed", "critical")
    assert line["exception"][0]["exc_value"] == "a bug"
    assert PLAIN.crash not in {*PLAIN.verdicts.values(), PLAIN.usage, PLAIN.no_boot}


def test_every_verdict_has_a_bisect_code() -> None:
    assert {word: BISECT.verdicts[word] for word in VerdictWord} == {
        VerdictWord.PASS: 0,
        VerdictWord.FAIL: 1,
        VerdictWord.UNKNOWN: 125,
    }
    assert set(PLAIN.verdicts) == set(VerdictWord)
    # git-bisect(1): all but these judge a commit.
    assert all(code == 125 or code > 127 for code in (BISECT.no_boot, BISECT.usage, INTERRUPTED))


words = st.one_of(
    st.sampled_from(["--bisect", "--strict", "--boot-timeout", "5m", "ext4", "--"]),
    st.integers(0, 8).map(lambda end: "--bisect"[:end]),
    st.text("-bisect", max_size=9),
)


@given(st.lists(words, max_size=4))
@deterministic
def test_bisection_is_detected_like_argparse_does(line: list[str]) -> None:
    """Where a command line can be parsed, the option was given just where it is found."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--bisect", action="store_true")
    parser.add_argument("--boot-timeout")
    parser.add_argument("--strict", action="store_true")
    try:
        options, _ = parser.parse_known_args(line)
    except (argparse.ArgumentError, SystemExit):
        return
    # Words after `--` are none of its options, and the command has no others.
    assert is_bisecting(line) or not options.bisect


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git_skips_boot_failures_but_not_usage_errors(tmp_path: Path) -> None:
    """Let git itself read the codes."""

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", tmp_path, *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull},
        )

    assert git("init", "--quiet").returncode == 0
    codes = (0, 0, 0, BISECT.no_boot, 0, 1, 1)
    for number, code in enumerate(codes):
        (tmp_path / "code").write_text(f"{code}\n{number}\n")
        git("add", "code")
        assert git("commit", "--quiet", "--message", f"number {number}").returncode == 0
    start = ("bisect", "start", "HEAD", f"HEAD~{len(codes) - 1}")
    git(*start)
    told = git("bisect", "run", "sh", "-c", "exit $(head -n 1 code)")
    assert told.returncode == 0
    assert git("log", "--format=%s", "-1", "refs/bisect/bad").stdout == "number 5\n"
    assert "# skip:" in git("bisect", "log").stdout
    for stop in (BISECT.usage, INTERRUPTED):
        git("bisect", "reset")
        git(*start)
        assert git("bisect", "run", "sh", "-c", f"exit {stop}").returncode != 0
        assert not re.search("^# (bad|good|skip):.*number 3", git("bisect", "log").stdout, re.MULTILINE)


def test_qemu_start_failure_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "qemu-system-x86_64"
    broken.write_text("#!/bin/sh\necho 'libfoo.so: cannot open' >&2\nexit 127\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert cli.main(["lab", "--run-dir", str(tmp_path / "run")]) == 2
    assert "failed (exit code 127): libfoo.so: cannot open." in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
