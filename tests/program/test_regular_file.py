# SPDX-License-Identifier: GPL-2.0-only
"""What stands in the place of a file and is none is refused at once, in a sentence that names it."""

from __future__ import annotations

import gzip
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from soak.config.sections import load_config
from soak.errors import UsageError
from soak.files.regular import (
    ContentError,
    NotRegularError,
    open_plain,
    open_regular,
    open_to_read,
    read_regular,
)
from soak.journal.reading import read_journal
from soak.journal.writer import FileJournal
from soak.lab.kernels.boot_image import boot_image_release
from soak.ledger.layout import LedgerError
from soak.ledger.reader import LedgerReader
from soak.ledger.writer import Ledger
from soak.report.top.terminal import watch
from tests.support.soak import make_ledger

if TYPE_CHECKING:
    from collections.abc import Callable

READERS: list[Callable[[Path], object]] = [
    load_config,
    boot_image_release,
    lambda path: list(read_journal(path)),
    FileJournal,
    LedgerReader.open,
    Ledger.open,
    lambda path: watch(path, path.with_name("verdict.json"), interval=None, once=True),
]


@pytest.fixture(params=["pipe", "socket", "device", "link"])
def odd(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "odd"
    match request.param:
        case "pipe":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as end:
                end.bind(str(path))
        case "device":
            return Path("/dev/zero")
        case _:
            path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize("read", READERS, ids=range(len(READERS)))
def test_special_files_never_block(odd: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises((NotRegularError, UsageError), match=r"a (named pipe|socket|character dev)"):
        read(odd)


def test_verdict_that_is_not_a_file_is_refused(tmp_path: Path) -> None:
    make_ledger(tmp_path / "ledger")
    verdict = tmp_path / "verdict.json"
    os.mkfifo(verdict)
    with pytest.raises(UsageError, match="it is a named pipe, expected a regular file"):
        watch(tmp_path / "ledger", verdict, interval=None, once=True)
    verdict.unlink()
    verdict.write_text("[" * 100_000)
    with pytest.raises(UsageError, match="is not a verdict"):
        watch(tmp_path / "ledger", verdict, interval=None, once=True)


@pytest.mark.parametrize("read", [read for read in READERS if read is not FileJournal])
def test_compressed_file_is_named_in_the_error(tmp_path: Path, read: Callable[[Path], object]) -> None:
    path = tmp_path / "packed"
    path.write_bytes(gzip.compress(b"something"))
    with pytest.raises((ContentError, UsageError, LedgerError), match="compressed with gzip"):
        read(path)


def test_a_directory_is_a_directory(tmp_path: Path) -> None:
    for read in (open_to_read, open_plain):
        with pytest.raises(IsADirectoryError):
            read(tmp_path)


def test_content_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_regular(path, 5) == b"12345"
    with pytest.raises(ContentError, match="at most 4 bytes"):
        read_regular(path, 4)


def test_file_is_created_with_o_creat(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with pytest.raises(FileNotFoundError):
        open_regular(path)
    os.close(open_regular(path, os.O_WRONLY | os.O_CREAT, 0o600))
    assert path.stat().st_mode & 0o777 == 0o600
    directory = os.open(tmp_path, os.O_RDONLY)
    os.close(open_regular(Path("new"), directory=directory))
    os.close(directory)


def test_refused_file_leaves_no_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "packed"
    path.write_bytes(gzip.compress(b"something"))
    before = sorted(Path("/proc/self/fd").iterdir())
    with pytest.raises(ContentError):
        open_plain(path)
    assert sorted(Path("/proc/self/fd").iterdir()) == before
