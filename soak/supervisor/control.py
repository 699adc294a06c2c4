# SPDX-License-Identifier: GPL-2.0-only
"""How a running soak is told to pause, to continue and to stop: one word over a socket, one answer back.

The socket lies in the run directory, where only those may reach it who may change the run. Whoever
listens looks at it between two other things and is never held up by whoever asks.
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
# Before the name of a fault: only the host of a lab takes it.
PLANT: Final = "plant "

_MESSAGE_BYTES: Final = 4096
_PATIENCE_SECONDS: Final = 5.0
# Coming to rest may take as long as a worker's longest call, ending as long as a last sweep.
_ANSWER_SECONDS: Final = 60.0
_END_SECONDS: Final = 180.0
_POLL_SECONDS: Final = 0.1
_BACKLOG: Final = 8
_MOST_WAITING: Final = 8


def ending_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that end a soak in order.

    SIGHUP comes when a terminal or a connection goes away: `nohup` has it ignored, in order that a soak
    goes on, and a blocked signal is queued though it is ignored.
    """
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGTERM, signal.SIGINT, *(() if ignored else (signal.SIGHUP,)))


def interrupt_on_ending_signals() -> None:
    """Have the signals that end a soak do what Ctrl-C does, while none runs yet or any more.

    An event loop that handles them itself leaves the default behind, which is to die without a word.
    """
    if threading.current_thread() is threading.main_thread():
        for number in set(ending_signals()) - {signal.SIGINT}:
            signal.signal(number, _raise_interrupt)


def ignore_ending_signals() -> None:
    """Ignore the signals that end a soak: the exit code of this program is decided."""
    for number in ending_signals():
        signal.signal(number, signal.SIG_IGN)


def _raise_interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


class Request:
    """A word that somebody said, and waits for an answer to."""

    def __init__(self, word: str, connection: socket.socket) -> None:
        self.word = word
        self._connection = connection

    def answer(self, sentence: str) -> None:
        """Answer; one who has gone away does not hear it."""
        with contextlib.suppress(OSError):
            self._connection.send(sentence.encode()[:_MESSAGE_BYTES])
        self._connection.close()


class ControlSocket:
    """Listens in a directory. `poll` never blocks."""

    def __init__(self, directory: Path) -> None:
        """Take the place of a socket that a dead soak left behind.

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
        """Return what was said since the last call."""
        with contextlib.suppress(BlockingIOError):
            while len(self._waiting) < _MOST_WAITING:
                connection, _ = self._socket.accept()
                connection.setblocking(False)
                self._waiting.append((time.monotonic(), connection))
        said, waiting = [], []
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
                said.append(Request(word, connection))
        self._waiting = waiting
        return said

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
    """A word that was said, whose answer can be waited for with select()."""

    def __init__(self, directory: Path, word: str) -> None:
        """Say the word, without ever waiting.

        Raises:
            BlockingIOError: too many wait for an answer there already.
            OSError: nobody listens there.
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
        """Return the answer; it is empty where whoever listened went away.

        Raises:
            TimeoutError: there was none in time.
        """
        self._socket.settimeout(seconds)
        with contextlib.closing(self._socket):
            return self._socket.recv(_MESSAGE_BYTES).decode(errors="replace")


def say(directory: Path, word: str) -> str:
    """Say a word and return what became of it; after `stop`, when the soak has ended.

    Raises:
        UsageError: no soak is running there, it does not answer, or it does not end.
    """
    answer = ask(directory, word, _ANSWER_SECONDS)
    if word == STOP:
        deadline = time.monotonic() + _END_SECONDS
        while (directory / SOCKET_NAME).exists():
            if time.monotonic() > deadline:
                raise UsageError(
                    f"The soak in {directory} has been stopping for {_END_SECONDS:g} s: 'dax-soak "
                    f"top' shows what it is doing."
                )
            time.sleep(_POLL_SECONDS)
        return "stopped"
    return answer


def ask(directory: Path, word: str, seconds: float) -> str:
    """Say a word to the soak of a run directory and return its answer.

    Raises:
        UsageError: no soak is running there, or it does not answer.
    """
    try:
        answer = Question(directory, word).answer(seconds)
    except TimeoutError:
        raise UsageError(
            f"The soak in {directory} did not answer within {seconds:g} s: it is busy, or stands "
            f"still. 'dax-soak top {directory}' shows what it is doing."
        ) from None
    except BlockingIOError:
        raise UsageError(
            f"The soak in {directory} has left others without an answer, and takes no more questions: it "
            f"is busy, or stands still. 'dax-soak top {directory}' shows what it is doing."
        ) from None
    except (FileNotFoundError, ConnectionError):
        raise UsageError(
            f"No soak is running in {directory}, so nothing there can {_verb(word)}."
        ) from None
    except OSError as error:
        raise UsageError(
            f"The soak in {directory} did not take the request to {_verb(word)}: {why(error)}."
        ) from None
    if not answer:
        raise UsageError(f"The soak in {directory} ended before it answered.")
    return answer


def _verb(word: str) -> str:
    return f"plant the fault {word.removeprefix(PLANT)}" if word.startswith(PLANT) else word


@contextlib.contextmanager
def _short_name(directory: Path) -> Iterator[str]:
    """Give a name of the directory that fits a socket's address, which has 108 bytes."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
