# SPDX-License-Identifier: GPL-2.0-only
"""Pauses, continues and stops a running soak: one request over a socket, one answer.

The permissions of the run directory protect the socket. The server polls it and never blocks on a client.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import threading
import time
from typing import TYPE_CHECKING, Final, NoReturn, Self

from soak.errors import UsageError, why

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SOCKET_NAME: Final = "control"
PAUSE: Final = "pause"
CONTINUE: Final = "continue"
STOP: Final = "stop"
WORDS: Final = (PAUSE, CONTINUE, STOP)
# Prefix of the name of a fault; only the host of a lab accepts it.
PLANT: Final = "plant "

_MESSAGE_BYTES: Final = 4096
_PATIENCE_SECONDS: Final = 5.0
# A pause may take as long as a worker's longest call, a stop as long as a last sweep.
_ANSWER_SECONDS: Final = 60.0
_END_SECONDS: Final = 180.0
_POLL_SECONDS: Final = 0.1
_BACKLOG: Final = 8
_MOST_WAITING: Final = 8


def ending_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that end a soak in order.

    SIGHUP only if it is not ignored: `nohup` ignores it to keep the soak alive, but a blocked signal is
    queued even if ignored.
    """
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGTERM, signal.SIGINT, *(() if ignored else (signal.SIGHUP,)))


def interrupt_on_ending_signals() -> None:
    """Make these signals raise KeyboardInterrupt, before and after a soak runs.

    An event loop that handles them restores the default action, which ends the process silently.
    """
    if threading.current_thread() is threading.main_thread():
        for number in set(ending_signals()) - {signal.SIGINT}:
            signal.signal(number, _raise_interrupt)


def ignore_ending_signals() -> None:
    """Ignore the signals that end a soak, once the exit code is decided."""
    for number in ending_signals():
        signal.signal(number, signal.SIG_IGN)


def _raise_interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


class Request:
    """A request whose client waits for an answer."""

    def __init__(self, word: str, connection: socket.socket) -> None:
        self.word = word
        self._connection = connection

    def answer(self, sentence: str) -> None:
        """Send the answer, if the client is still connected."""
        with contextlib.suppress(OSError):
            self._connection.send(sentence.encode()[:_MESSAGE_BYTES])
        self._connection.close()


class ControlSocket:
    """The server side: a socket in a directory. `poll` never blocks."""

    def __init__(self, directory: Path) -> None:
        """Listen, replacing the socket of a dead soak.

        Raises:
            OSError: the socket cannot be made there.
        """
        self._path = directory / SOCKET_NAME
        if self._path.exists() and stat.S_ISSOCK(self._path.lstat().st_mode):
            self._path.unlink()
        self._waiting: list[tuple[float, socket.socket]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        with _short_name(directory) as place:
            self._socket.bind(f"{place}/{SOCKET_NAME}")
        self._path.chmod(0o600)
        self._socket.setblocking(False)
        self._socket.listen(_BACKLOG)

    def poll(self) -> list[Request]:
        """Return the requests since the last call."""
        with contextlib.suppress(BlockingIOError):
            while len(self._waiting) < _MOST_WAITING:
                connection, _ = self._socket.accept()
                connection.setblocking(False)
                self._waiting.append((time.monotonic(), connection))
        requests, waiting = [], []
        for since, connection in self._waiting:
            try:
                word = connection.recv(_MESSAGE_BYTES).decode(errors="replace")
            except BlockingIOError:
                if time.monotonic() - since < _PATIENCE_SECONDS:
                    waiting.append((since, connection))
                else:
                    connection.close()
            except OSError:
                connection.close()
            else:
                requests.append(Request(word, connection))
        self._waiting = waiting
        return requests

    def close(self) -> None:
        for _, connection in self._waiting:
            connection.close()
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Question:
    """A request of a client; its descriptor is readable when the answer has arrived."""

    def __init__(self, directory: Path, word: str) -> None:
        """Send the request without blocking.

        Raises:
            BlockingIOError: the backlog of unanswered requests is full.
            OSError: no soak listens there.
        """
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            self._socket.setblocking(False)
            with _short_name(directory) as place:
                self._socket.connect(f"{place}/{SOCKET_NAME}")
            self._socket.send(word.encode())
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def answer(self, seconds: float) -> str:
        """Return the answer; empty if the soak ended without one.

        Raises:
            TimeoutError: no answer within `seconds`.
        """
        self._socket.settimeout(seconds)
        with contextlib.closing(self._socket):
            return self._socket.recv(_MESSAGE_BYTES).decode(errors="replace")


def send(directory: Path, word: str) -> str:
    """Send a request and return the answer; for `stop`, wait until the soak has ended.

    Raises:
        UsageError: no soak is running there, it does not answer, or it does not end.
    """
    answer = ask(directory, word, _ANSWER_SECONDS)
    if word == STOP:
        deadline = time.monotonic() + _END_SECONDS
        while (directory / SOCKET_NAME).exists():
            if time.monotonic() > deadline:
                raise UsageError(
                    f"The soak in {directory} has been stopping for {_END_SECONDS:g} s: see 'dax-soak "
                    f"top {directory}'."
                )
            time.sleep(_POLL_SECONDS)
        return "stopped"
    return answer


def ask(directory: Path, word: str, seconds: float) -> str:
    """Send a request to the soak of a run directory and return its answer.

    Raises:
        UsageError: no soak is running there, or it does not answer.
    """
    try:
        answer = Question(directory, word).answer(seconds)
    except TimeoutError:
        raise UsageError(
            f"The soak in {directory} did not answer within {seconds:g} s: it is busy or hangs. See "
            f"'dax-soak top {directory}'."
        ) from None
    except BlockingIOError:
        raise UsageError(
            f"The soak in {directory} has too many unanswered requests: it is busy or hangs. See "
            f"'dax-soak top {directory}'."
        ) from None
    except (FileNotFoundError, ConnectionError):
        raise UsageError(f"Cannot {_verb(word)}: no soak is running in {directory}.") from None
    except OSError as error:
        raise UsageError(
            f"The request to {_verb(word)} could not be sent to the soak in {directory}: {why(error)}."
        ) from None
    if not answer:
        raise UsageError(f"The soak in {directory} ended before it answered.")
    return answer


def _verb(word: str) -> str:
    return f"plant the fault {word.removeprefix(PLANT)}" if word.startswith(PLANT) else word


@contextlib.contextmanager
def _short_name(directory: Path) -> Iterator[str]:
    """Yield a short path of the directory: a socket's address holds 108 bytes."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
