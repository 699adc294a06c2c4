# SPDX-License-Identifier: GPL-2.0-only
"""What users and their surroundings do wrong: one sentence and an exit code, never a crash."""

from __future__ import annotations

import contextlib
import importlib
import os
import pwd
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import pytest

from soak import run_directory
from soak.abi.libc import LIBC
from soak.cli import main
from soak.errors import UsageError
from soak.files.user_directories import user_directory
from soak.lab import requirements
from soak.lab.cache import Cache, cache_directory
from soak.lab.guest.faults import parse_fault
from soak.lab.image.apt import Mirror
from soak.lab.kernels.store import check_kernel
from soak.supervisor import control

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

LONG_NAME: Final = "n" * 256
LONG_PATH: Final = "/n" * 2048
NOT_UTF8: Final = os.fsdecode(b"\xff")
NOBODY: Final = 65534
IMPORTED_WHEN_NEEDED: Final = ("exporter.__main__", "soak.lab.command", "soak.report.top.terminal")

# Where a word of the command line names a file, a directory or a run.
PLACES: Final = (
    ("lab", "--kernel"),
    ("lab", "--modules"),
    ("lab", "--run-dir"),
    ("lab", "-c"),
    ("lab", "--resume"),
    ("bench", "--kernel"),
    ("run", "--run-dir"),
    ("run", "-c"),
    ("check", "-c"),
    ("check", "--write"),
    ("install", "--dry-run", "--root"),
    ("install", "--dry-run", "--config"),
    ("report",),
    ("top",),
    ("exporter",),
    ("pause",),
    ("continue",),
    ("stop",),
    ("plant", "panic"),
)
NO_PLACES: Final = (
    ("", "it is empty"),
    (LONG_NAME, "a name of 256 bytes"),
    (LONG_PATH, "has 4096 bytes"),
    ("a\nb", r"'a\nb' has a control character"),
    ("\x1b[2J", r"'\x1b[2J' has a control character"),
    ("a\0b", r"'a\x00b' has a control character"),
)
ADDRESSES: Final = (
    ("lab", "--listen"),
    ("exporter", "run", "--listen"),
    ("install", "--dry-run", "--exporter-listen"),
    ("run", "-c", "soak.toml", "--watch-exporter"),
)
NO_ADDRESSES: Final = ("", "a..b:1", "9823", "[::1]", "[a..b]:1", "localhost:65536", f"{NOT_UTF8}:1")
DURATIONS: Final = (
    ("lab", "--duration"),
    ("lab", "--boot-timeout"),
    ("lab", "--linger"),
    ("bench", "--duration"),
    ("top", "--interval"),
)
NO_DURATIONS: Final = ("", "0s", "-5", "nan", "1e3", f"1{'0' * 400}d", "9" * 5000, "\u0663s")
OTHERS: Final = (
    *((("lab", "--seed", text), "a whole number from 0") for text in ("", "9" * 5000, "\u0663")),
    *(
        (("lab", "--print-choices", text), "a whole number from 1")
        for text in ("", "-1", "0", "9" * 5000, "x")
    ),
    (("lab", "--scenario", ""), "it is empty"),
    (("lab", "--scenario", LONG_NAME), "expected a name of at most 255"),
    (("lab", "--scenario", NOT_UTF8), r"Unknown scenario '\udcff'"),
    (("lab", "--device", ""), "it is empty"),
    (("lab", "--append", "a\0b"), "has a control character"),
    (("lab", "--append", "a" * 1025), "has 1025 bytes"),
    (("lab", "--fault", ""), "it is empty"),
    (("lab", "--fault", "panic:7", "--duration", "6s"), "7 s is beyond the run's duration of 6 s"),
    (("lab", "--fault", "panic:1e300"), "at most a year"),
    (("lab", "--fault", "panic:1e999"), "at most a year"),
    (("lab", "--filesystem", ""), "invalid choice: ''"),
    (("plant", ""), "it is empty"),
    (("",), "invalid choice: ''"),
    ((NOT_UTF8,), r"invalid choice: '\udcff'"),
)


def sentence(capsys: pytest.CaptureFixture[str], words: Sequence[str], code: int = 2) -> str:
    """Run a command that must fail with `code`, and return the one line that it says."""
    found = main(words)
    captured = capsys.readouterr()
    assert found == code, captured.err
    assert captured.out == ""
    assert captured.err.startswith("dax-soak: ")
    assert captured.err.count("\n") == 1
    return captured.err.strip()


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a directory that any user may look into; pytest's own are private."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Have files looked at with the rights of a user who has none, where this is root."""
    if os.geteuid() != 0:
        yield
        return
    # Python's own files may be where nobody may look.
    for module in IMPORTED_WHEN_NEEDED:
        importlib.import_module(module)
    # What the kernel checks files by; the rights of root over files go with it, and come back.
    LIBC.setfsuid(NOBODY)
    try:
        yield
    finally:
        LIBC.setfsuid(0)


@pytest.fixture
def no_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have no runs where all are kept, and nothing in the cache."""
    monkeypatch.setattr(run_directory, "runs_directory", lambda: tmp_path / "runs")
    monkeypatch.setenv("DAX_SOAK_CACHE", "/dev/null/cache")


def a_run(directory: Path) -> Path:
    """Make a run directory with a journal that says nothing yet."""
    directory.mkdir(parents=True)
    (directory / run_directory.JOURNAL).touch()
    return directory


# --- the command line ---


@pytest.mark.parametrize("words", PLACES, ids=" ".join)
@pytest.mark.usefixtures("no_runs")
def test_invalid_path_is_refused(capsys: pytest.CaptureFixture[str], words: Sequence[str]) -> None:
    for text, told in NO_PLACES:
        said = sentence(capsys, [*words, text])
        assert told in said
        assert len(said) < 300


@pytest.mark.parametrize("words", ADDRESSES, ids=" ".join)
@pytest.mark.usefixtures("no_runs")
def test_invalid_listen_address_is_refused(
    capsys: pytest.CaptureFixture[str], words: Sequence[str]
) -> None:
    for text in NO_ADDRESSES:
        said = sentence(capsys, [*words, text])
        assert words[-1] in said
        assert "HOST:PORT, such as 127.0.0.1:9823" in said


@pytest.mark.parametrize("words", DURATIONS, ids=" ".join)
@pytest.mark.usefixtures("no_runs")
def test_invalid_duration_is_refused(capsys: pytest.CaptureFixture[str], words: Sequence[str]) -> None:
    for text in NO_DURATIONS:
        said = sentence(capsys, [*words, text])
        assert words[-1] in said
        assert 'not a duration such as "90s"' in said
        assert len(said) < 300


@pytest.mark.parametrize(("words", "told"), OTHERS)
@pytest.mark.usefixtures("no_runs")
def test_other_invalid_arguments_are_refused(
    capsys: pytest.CaptureFixture[str], words: Sequence[str], told: str
) -> None:
    assert told in sentence(capsys, words)


@pytest.mark.usefixtures("no_runs")
def test_usage_error_has_the_bisect_code(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--kernel", ""], ["--listen", "a..b:1"], ["--run-dir", LONG_NAME]):
        sentence(capsys, ["lab", "--bisect", *words], code=255)


def test_fault_delay_is_at_most_a_year() -> None:
    assert parse_fault("panic:31622400") == ("panic", 366 * 86400.0)
    with pytest.raises(UsageError):
        parse_fault("panic:31622401")


@pytest.mark.usefixtures("no_runs")
def test_an_address_of_the_configuration_is_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "soak.toml"
    path.write_text('[exporter]\nlisten = "a..b:1"\n')
    said = sentence(capsys, ["lab", "-c", str(path)])
    assert "exporter.listen is 'a..b:1', expected HOST:PORT" in said


# --- run directories ---


def refuse_all(directory: Path) -> None:
    directory.chmod(0)


def refuse_listing(directory: Path) -> None:
    directory.chmod(0o111)


def refuse_searching(directory: Path) -> None:
    directory.chmod(0o444)


def refuse_parent(directory: Path) -> None:
    directory.parent.chmod(0)


def refuse_journal(directory: Path) -> None:
    (directory / run_directory.JOURNAL).chmod(0)


def refuse_ledger(directory: Path) -> None:
    (directory / run_directory.LEDGER).touch(mode=0)


@pytest.mark.parametrize(
    ("break_it", "commands"),
    [
        (refuse_all, ["report", "top", "exporter", "stop", "plant panic", "lab --resume"]),
        (refuse_parent, ["report", "top", "exporter", "stop", "plant panic", "lab --resume"]),
        (refuse_searching, ["report", "top", "exporter", "stop", "plant panic", "lab --resume"]),
        (refuse_listing, ["report", "stop"]),
        (refuse_journal, ["report"]),
        (refuse_ledger, ["top"]),
    ],
)
@pytest.mark.usefixtures("no_runs")
def test_inaccessible_run_is_refused(
    capsys: pytest.CaptureFixture[str], place: Path, break_it: Callable[[Path], None], commands: list[str]
) -> None:
    run = a_run(place / "others" / "run")
    break_it(run)
    for command in commands:
        with as_nobody():
            said = sentence(capsys, [*command.split(), str(run)])
        assert str(run) in said
        assert "Permission denied" in said


@pytest.mark.parametrize(
    ("command", "broken", "told"),
    [
        ("report", run_directory.JOURNAL, "Is a directory"),
        ("lab --resume", run_directory.JOURNAL, "Is a directory"),
        ("top", run_directory.LEDGER, "Is a directory"),
    ],
)
@pytest.mark.usefixtures("no_runs")
def test_directory_instead_of_a_file_is_an_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str, broken: str, told: str
) -> None:
    run = a_run(tmp_path / "run")
    (run / broken).unlink(missing_ok=True)
    (run / broken).mkdir()
    said = sentence(capsys, [*command.split(), str(run)])
    assert str(run / broken) in said
    assert told in said


@pytest.mark.parametrize("command", ["report", "top", "stop", "lab --resume"])
@pytest.mark.usefixtures("no_runs")
def test_dangling_link_is_an_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    (tmp_path / "latest").symlink_to("gone")
    (tmp_path / "loop").symlink_to("loop")
    said = sentence(capsys, [*command.split(), str(tmp_path / "latest")])
    assert "is a link to 'gone'" in said
    said = sentence(capsys, [*command.split(), str(tmp_path / "loop")])
    assert "symbolic links" in said


@pytest.mark.usefixtures("no_runs")
def test_new_run_below_a_private_directory_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    monkeypatch.setattr("soak.lab.command.check_kernel", lambda *_: None)
    (place / "private").mkdir(mode=0)
    with as_nobody():
        said = sentence(capsys, ["lab", "--run-dir", str(place / "private/run")])
    assert f"{place}/private/run is not accessible (Permission denied)" in said


# --- a soak that is asked something ---


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return a run whose soak is not waited for long."""
    monkeypatch.setattr(control, "_ANSWER_SECONDS", 0.05)
    return a_run(tmp_path / "run")


COMMANDS: Final = ("pause", "continue", "stop", "plant panic")


def test_unresponsive_soak_is_an_error(capsys: pytest.CaptureFixture[str], asked: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as busy:
        busy.bind(str(asked / control.SOCKET_NAME))
        busy.listen(len(COMMANDS))
        for command in COMMANDS:
            said = sentence(capsys, [*command.split(), str(asked)])
            assert f"The soak in {asked} did not answer within 0.05 s" in said


def test_full_request_queue_is_an_error(capsys: pytest.CaptureFixture[str], asked: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as busy:
        busy.bind(str(asked / control.SOCKET_NAME))
        busy.listen(0)
        waiting = control.Question(asked, "")
        for command in COMMANDS:
            said = sentence(capsys, [*command.split(), str(asked)])
            assert "too many unanswered requests" in said
        with pytest.raises(TimeoutError):
            waiting.answer(0.01)


def test_socket_without_a_soak_is_an_error(capsys: pytest.CaptureFixture[str], asked: Path) -> None:
    path = asked / control.SOCKET_NAME
    for command in COMMANDS:
        path.write_text("")
        assert "no soak is running" in sentence(capsys, [*command.split(), str(asked)])
        path.unlink()
        with socket.socket(socket.AF_UNIX) as stream:
            stream.bind(str(path))
            stream.listen()
            assert "wrong type for socket" in sentence(capsys, [*command.split(), str(asked)])
        path.unlink()


# --- where the user's files are ---


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"DAX_SOAK_CACHE": "here"}, "DAX_SOAK_CACHE is 'here': set it to an absolute path"),
        ({"XDG_CACHE_HOME": "here"}, "XDG_CACHE_HOME is 'here': set it to an absolute path"),
        ({"HOME": ""}, "HOME is '': set it, or XDG_CACHE_HOME"),
        ({"HOME": "here"}, "HOME is 'here': set it, or XDG_CACHE_HOME"),
        ({}, "HOME is not set, and this user has no entry in the password file"),
    ],
)
def test_invalid_directory_variable_is_an_error(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], told: str
) -> None:
    def unknown(_: int) -> NoReturn:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("DAX_SOAK_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=told):
        cache_directory()


def test_password_file_replaces_a_missing_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    home = pwd.getpwuid(os.getuid()).pw_dir
    assert user_directory("XDG_STATE_HOME", ".local/state") == Path(home) / ".local/state"


def test_named_run_needs_no_home(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    monkeypatch.setenv("HOME", "")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert main(["report", str(a_run(tmp_path / "run"))]) == 3
    assert capsys.readouterr().err == ""
    assert "HOME is ''" in sentence(capsys, ["report", "latest"])


@pytest.mark.parametrize(
    ("below", "told"),
    [
        ("file", "Not a directory"),
        ("file/cache", "Not a directory"),
        ("loop", "Too many levels of symbolic links"),
        ("private/cache", "Permission denied"),
        (f"{LONG_NAME}/cache", "File name too long"),
    ],
)
def test_unusable_cache_is_an_error(
    monkeypatch: pytest.MonkeyPatch, place: Path, below: str, told: str
) -> None:
    (place / "file").touch()
    (place / "loop").symlink_to("loop")
    (place / "private").mkdir(mode=0)
    monkeypatch.setenv("DAX_SOAK_CACHE", str(place / below))
    # Slow to ask, and not what is asked here.
    monkeypatch.setattr(requirements, "find_qemu", lambda: "")
    monkeypatch.setattr(requirements, "machine_mirror", lambda: Mirror("", None))
    with as_nobody():
        with pytest.raises(UsageError, match=rf"cannot be used \({told}.*DAX_SOAK_CACHE"):
            Cache(place / below).directory("root/x", lambda _: None)
        found = {answer.subject: answer for answer in requirements.look()}
    assert not found["cache"].good
    assert str(place / below) in found["cache"].says


def test_a_private_cache_may_hold_a_kernel(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    (place / "private").mkdir(mode=0)
    monkeypatch.setenv("DAX_SOAK_CACHE", str(place / "private/cache"))
    with as_nobody(), pytest.raises(UsageError, match=r"cannot be used .*DAX_SOAK_CACHE"):
        check_kernel("build:6.12")


def test_full_cache_disk_is_an_error(tmp_path: Path) -> None:
    def build(directory: Path) -> None:
        with (directory / "link").open("wb", buffering=0) as file:
            file.write(b"x")

    def full(directory: Path) -> None:
        (directory / "link").symlink_to("/dev/full")
        build(directory)

    with pytest.raises(UsageError, match="No space left on device"):
        Cache(tmp_path).directory("root/x", full)
    assert not (tmp_path / "root/x").exists()
    assert Cache(tmp_path).directory("root/x", build).is_dir()


@pytest.mark.usefixtures("no_runs")
def test_deleted_working_directory_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    said = sentence(capsys, ("report", "latest"))
    assert "The working directory no longer exists" in said
