# SPDX-License-Identifier: GPL-2.0-only
"""What the service manager is told, over a real socket, and what it says to its services."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soak.errors import UsageError
from soak.process.notify import Notifier, watchdog_seconds
from tests.process.support import listening_manager
from tests.support.soak import deterministic

if TYPE_CHECKING:
    from pathlib import Path

LARGEST = 2**64 - 2


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_manager_receives_notifications(tmp_path: Path, *, abstract: bool) -> None:
    with listening_manager(None if abstract else str(tmp_path / "notify")) as manager:
        environment = {"NOTIFY_SOCKET": manager.address}
        with Notifier.from_environment(environment) as notifier:
            assert notifier.ready("up")
            assert notifier.status("well")
            assert notifier.feed()
            assert notifier.stopping("told to")
        assert manager.hear() == [
            {"READY": "1", "MAINPID": str(os.getpid()), "STATUS": "up"},
            {"STATUS": "well"},
            {"WATCHDOG": "1"},
            {"STOPPING": "1", "STATUS": "told to"},
        ]
        assert environment == {"NOTIFY_SOCKET": manager.address}


def test_without_manager_nothing_is_sent(capsys: pytest.CaptureFixture[str]) -> None:
    with Notifier.from_environment({}) as notifier:
        assert not notifier.ready("up")
        assert not notifier.feed()
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


@given(st.text())
@deterministic
def test_a_text_is_one_line(text: str) -> None:
    with listening_manager() as manager, Notifier(manager.address) as notifier:
        assert notifier.status(text)
        ((name, value),) = [pair for message in manager.hear() for pair in message.items()]
        assert name == "STATUS"
        assert re.sub(r"\s|\?", "", value) == re.sub(r"\s|\?", "", text.encode(errors="replace").decode())


def test_full_manager_socket_does_not_block() -> None:
    with listening_manager() as manager, Notifier(manager.address) as notifier:
        # The queue of a datagram socket (net.unix.max_dgram_qlen) is finite.
        sent = 0
        while notifier.feed():
            sent += 1
        assert not notifier.feed()
        assert len(manager.hear()) == sent
        assert notifier.feed()


def test_manager_may_disappear_and_return(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with Notifier(address) as notifier:
        assert not notifier.feed()
        with listening_manager(address) as manager:
            assert notifier.feed()
            assert manager.was_told("WATCHDOG")
        assert not notifier.feed()


@pytest.mark.parametrize("address", ["", "@", "notify", "vsock:2:1234"])
def test_invalid_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match=r"NOTIFY_SOCKET is .*, expected"):
        Notifier(address)


@given(st.integers(1, LARGEST))
@deterministic
def test_every_interval_is_read(usec: int) -> None:
    assert watchdog_seconds({"WATCHDOG_USEC": str(usec)}) == pytest.approx(usec / 1e6)


@given(st.integers(1, LARGEST), st.integers(1, 2**22), st.integers(1, 2**22))
@deterministic
def test_only_the_watched_process_feeds(usec: int, watched: int, pid: int) -> None:
    environment = {"WATCHDOG_USEC": str(usec), "WATCHDOG_PID": str(watched)}
    assert (watchdog_seconds(environment, pid) is None) == (watched != pid)
    assert watchdog_seconds(environment, watched) is not None


texts = st.one_of(
    st.text(),
    st.integers(max_value=0).map(str),
    st.integers(min_value=LARGEST + 1).map(str),
    st.sampled_from(["", "0", " 5", "+5", "5_0", "0x10", "1e6", "٣", "9" * 5000]),
)


@given(texts)
@deterministic
def test_other_intervals_are_refused(text: str) -> None:
    if re.fullmatch("[0-9]{1,20}", text, re.ASCII) and 0 < int(text) <= LARGEST:
        return
    with pytest.raises(UsageError, match="WATCHDOG_USEC is"):
        watchdog_seconds({"WATCHDOG_USEC": text})
    with pytest.raises(UsageError, match="WATCHDOG_PID is"):
        watchdog_seconds({"WATCHDOG_USEC": "5", "WATCHDOG_PID": text})


def test_unset_watchdog_variables_mean_no_watchdog() -> None:
    assert watchdog_seconds({}) is None
    assert watchdog_seconds({"WATCHDOG_PID": "1"}) is None
