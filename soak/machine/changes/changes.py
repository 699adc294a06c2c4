# SPDX-License-Identifier: GPL-2.0-only
"""The one owner of what the soak changes on a machine: it makes the changes and puts them back."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from soak.abi.libc import die_with_parent
from soak.errors import UsageError
from soak.journal.writer import Level
from soak.machine.changes.bindings import VFIO_PCI, driver_of
from soak.machine.changes.entry import (
    FAILED,
    FORGOTTEN,
    RESTORED,
    Entry,
    Facts,
    Machine,
    Outcome,
    Settled,
    UnchangedError,
)
from soak.machine.changes.kinds import KINDS
from soak.machine.changes.lock import Busy, lock_machine
from soak.machine.changes.modules import MODULES, is_there
from soak.machine.changes.record import Record, sync_directory
from soak.machine.changes.sysctls import Demand, Span, wanted_values
from soak.process.helper import HelperError, in_helper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from soak.files.process_lock import ProcessLock

_OTHERS_WRITE: Final = 0o022
_BUSY_SECONDS: Final = 20.0
_DONE, _REFUSED, _UNCHANGED = "done", "refused", "unchanged"


class MachineChanges:
    """Changes a machine, and remembers how it was, on disk, before each change.

    Nothing here hangs: whatever touches the machine is done by a helper with a deadline. Only the process
    that opened it may use it.
    """

    def __init__(
        self, record: Record, lock: ProcessLock, busy: Busy, run_id: str, machine: Machine
    ) -> None:
        self._record, self._lock, self._busy = record, lock, busy
        self._run_id, self._machine = run_id, machine
        self._hung = not busy.wait(_BUSY_SECONDS)
        self._left: set[str] = set()

    @classmethod
    def open(cls, state: Path, run_id: str, machine: Machine | None = None) -> Self:
        """Take the lock and read the record in the directory `state`, which is made if need be.

        What an earlier soak left behind stays as it is until `recover`.

        Raises:
            UsageError: another soak is running, or the directory cannot be used.
        """
        _prepare(state)
        try:
            lock = lock_machine(state, run_id)
        except OSError as error:
            raise UsageError(f"The lock in {state} cannot be taken: {error.strerror}.") from None
        try:
            return cls(Record(state, KINDS), lock, Busy(state), run_id, machine or Machine())
        except BaseException:
            lock.release()
            raise

    @property
    def held(self) -> tuple[Entry, ...]:
        """What is changed and not put back, the oldest first."""
        return tuple(self._record.entries)

    def recover(self) -> list[Settled]:
        """Put back what an earlier soak left behind, and say so. To be called before any change."""
        told = []
        if self._record.damage:
            told.append(Settled(FAILED, Level.ERROR, "record", "", "", self._record.damage))
        if self._hung:
            told.append(
                Settled(
                    FAILED,
                    Level.ERROR,
                    "helper",
                    "",
                    "",
                    "A helper of an earlier soak still hangs in the kernel, and what it is changing may "
                    "change again when it ends: run 'dax-soak restore' then.",
                )
            )
        return told + self.restore()

    def restore(self) -> list[Settled]:
        """Put everything back, the newest change first. What fails stays recorded, the rest goes on."""
        self._check_owner()
        settled = []
        kept: set[tuple[str, str]] = set()
        for entry in reversed(self._record.entries):
            if entry.kind == "directory" and entry.target in self._left:
                continue
            carried = any(kind in KINDS[entry.kind].carries for kind, _ in kept)
            if carried or (entry.kind, entry.target) in kept:
                # What lies below a change that could not be undone would look like somebody else's.
                continue
            settled.append(self._settle(entry))
            if settled[-1].event == FAILED:
                kept.add((entry.kind, entry.target))
        return settled

    def undo(self, number: int) -> Settled:
        """Put one change back.

        Raises:
            KeyError: there is no such change.
        """
        for entry in self._record.entries:
            if entry.number == number:
                return self._settle(entry)
        raise KeyError(number)

    def bind(self, function: str) -> int | None:
        """Give a PCI function to vfio-pci; None where that has it already.

        Whether it may be taken, by its IOMMU group and by what uses it, was asked before.

        Raises:
            UsageError: there is no such function, or vfio-pci does not take it.
        """
        if driver_of(self._machine, function) == VFIO_PCI:
            return None
        return self._change("binding", function)

    def load_module(self, name: str) -> int | None:
        """Load a module of `MODULES`; None where the kernel has it already.

        Raises:
            UsageError: it cannot be loaded.
        """
        if name not in MODULES:
            raise UsageError(f"{name!r} is no module that a soak loads: {', '.join(MODULES)} are.")
        return None if is_there(self._machine, name) else self._change("module", name)

    def set_sysctl(self, name: str, value: str) -> int:
        """Set a kernel setting such as vm.max_map_count.

        Raises:
            UsageError: there is no such setting, or the kernel does not take the value.
        """
        return self._change("sysctl", name, wanted=" ".join(value.split()))

    def tune(self, demand: Demand, span: Span = Span.RUN) -> list[int]:
        """Change those kernel settings (`NEEDS`) that would be in the way; return their numbers.

        Raises:
            UsageError: one cannot be set; those before it are.
        """
        return [
            self.set_sysctl(name, str(value))
            for name, value in wanted_values(self._machine, demand, span)
        ]

    @contextlib.contextmanager
    def readable_addresses(self, tell: Callable[[Settled], None]) -> Iterator[None]:
        """Have the kernel show addresses of its symbols to root meanwhile; `tell` what became of it.

        Raises:
            UsageError: the kernel does not allow it.
        """
        numbers = self.tune(Demand(0, 0), Span.READING_ADDRESSES)
        try:
            yield
        finally:
            for number in reversed(numbers):
                tell(self.undo(number))

    def make_directory(self, path: Path) -> Path:
        """Make a directory for the soak's own files, which only its owner may enter.

        Returns its path without symbolic links. It is removed with all that is in it.

        Raises:
            UsageError: it is there already, or cannot be made there.
        """
        resolved = Path(os.path.realpath(path.parent)) / path.name
        self._change("directory", str(resolved))
        return resolved

    def leave_directory(self, path: Path) -> None:
        """Have `restore` leave a directory, of which a file cannot be removed; it stays recorded."""
        self._left.add(str(path))

    def freeze(self, mount_point: Path) -> int:
        """Freeze a file system. `undo` thaws it.

        Raises:
            UsageError: it is frozen already or cannot be, or the kernel did not do it in time: then it
                stays recorded, because that freeze may still come.
        """
        return self._change("freeze", str(mount_point))

    def close(self) -> None:
        """Give the lock back. What is still changed stays recorded."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _change(self, kind: str, target: str, **wanted: Any) -> int:  # noqa: ANN401 - JSON values
        """Look, write down, change. Where the change fails, what came of it is undone."""
        self._check_owner()
        made, machine = KINDS[kind], self._machine
        prefix = f"The {kind} {target} could not be changed: "
        facts: Facts = self._helped(lambda: made.look(machine, target, wanted), made.seconds, prefix)
        entry = Entry(self._record.next_number(), kind, target, facts, machine.boot, self._run_id)
        try:
            self._record.add(entry)
        except OSError as error:
            raise UsageError(
                f"The change of {target} was not made, because it cannot be recorded: {error.strerror}."
            ) from None
        try:
            self._helped(lambda: made.apply(machine, target, facts), made.seconds, prefix)
        except UsageError as failure:
            nothing = isinstance(failure, UnchangedError)
            settled = self._drop(entry, "") if nothing else self._settle(entry)
            if settled.event == FAILED:
                raise UsageError(f"{failure} {settled.summary}") from None
            raise
        return entry.number

    def _settle(self, entry: Entry) -> Settled:
        """Put one entry back, and take it out of the record when that is done."""
        self._check_owner()
        kind, machine = KINDS[entry.kind], self._machine
        if entry.boot_id != machine.boot and not kind.outlives_boot:
            event, level = FORGOTTEN, Level.INFO
            summary = (
                f"{entry.kind} {entry.target} of run {entry.run_id}: the machine has booted since, and "
                f"nothing is left of it"
            )
        else:
            try:
                outcome, summary = self._helped(
                    lambda: kind.undo(machine, entry.target, entry.facts), kind.seconds
                )
            except UsageError as error:
                by_hand = kind.by_hand(entry.target, entry.facts)
                return _settled(
                    entry,
                    FAILED,
                    Level.ERROR,
                    f"The {entry.kind} {entry.target} could not be put back ({str(error).rstrip('.')}): "
                    f"{by_hand}. It is tried again at the next start and by 'dax-soak restore'.",
                )
            restored = outcome == Outcome.RESTORED
            event, level = (RESTORED, Level.INFO) if restored else (FORGOTTEN, Level.WARNING)
        return self._drop(entry, summary, event, level)

    def _drop(
        self, entry: Entry, summary: str, event: str = FORGOTTEN, level: Level = Level.INFO
    ) -> Settled:
        """Take an entry out of the record."""
        try:
            self._record.remove(entry.number)
        except OSError as error:
            return _settled(
                entry,
                FAILED,
                Level.ERROR,
                f"{summary or 'Nothing was changed'}; but the record of it cannot be written "
                f"({error.strerror}): make room, and run 'dax-soak restore'.",
            )
        return _settled(entry, event, level, summary)

    def _helped(self, work: Callable[[], Any], seconds: float, prefix: str = "") -> Any:  # noqa: ANN401 - any JSON value
        """Do something in a helper, while the lock that says so is held.

        `prefix` begins the sentence where the helper itself could not say anything.

        Raises:
            UsageError: it was refused, failed, or took too long.
        """
        try:
            with self._busy.shared() as busy:
                inherited = _open_descriptors() - {0, 1, 2, busy}
                status, value = in_helper(_guarded(work, os.getpid(), inherited), seconds)
        except HelperError as error:
            raise UsageError(f"{prefix}{error}.") from None
        except OSError as error:
            raise UsageError(f"The lock of helpers cannot be taken: {error.strerror}.") from None
        if status == _UNCHANGED:
            raise UnchangedError(value)
        if status == _REFUSED:
            raise UsageError(value)
        return value

    def _check_owner(self) -> None:
        if not self._lock.held:
            raise RuntimeError("these changes are closed, or belong to the process that forked this one")


def restore_only(
    state: Path, machine: Machine | None = None, also: Callable[[], list[Settled]] = list
) -> list[Settled]:
    """Put back what an earlier soak left behind, without starting another one.

    What `also` puts back is put back while no other soak can start.

    Raises:
        UsageError: a soak is running, or the record cannot be read.
    """
    if not state.exists():
        return []
    with MachineChanges.open(state, "restore", machine) as changes:
        return [*changes.recover(), *also()]


def _open_descriptors() -> set[int]:
    """Return the descriptors of this process, without the one that lists them."""
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            os.fstat(int(path.name))
            found.add(int(path.name))
    return found


def _guarded(work: Callable[[], Any], parent: int, inherited: Iterable[int]) -> Callable[[], list[Any]]:
    """Have a helper end with the soak, and tell what the kernel refused as a sentence."""

    def guarded() -> list[Any]:
        # A copy of what the soak has open would keep it open: unbinding a function waits until the last
        # descriptor of it is closed, a freeze until the last page of a pipe is gone. A helper that
        # waits for what it holds itself waits for ever.
        for descriptor in inherited:
            # The lock of the machine was closed by the fork itself.
            with contextlib.suppress(OSError):
                os.close(descriptor)
        # Ctrl-C goes to the whole process group: the soak hears it, and lets its helpers finish.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        die_with_parent(signal.SIGKILL, parent)
        try:
            return [_DONE, work()]
        except UsageError as error:
            return [_UNCHANGED if isinstance(error, UnchangedError) else _REFUSED, str(error)]
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            return [_REFUSED, f"{where}{error.strerror}."]

    return guarded


def _settled(entry: Entry, event: str, level: Level, summary: str) -> Settled:
    return Settled(event, level, entry.kind, entry.target, entry.run_id, summary)


def _prepare(state: Path) -> None:
    """Make the directory of the record, and refuse one in which others could write what root obeys."""
    try:
        new = [path for path in (state, *state.parents) if not path.exists()]
        for path in reversed(new):
            path.mkdir(mode=0o755)
            sync_directory(path.parent)
        found = state.stat()
    except OSError as error:
        raise UsageError(f"The state directory {state} cannot be made: {error.strerror}.") from None
    if found.st_uid != os.geteuid() or found.st_mode & _OTHERS_WRITE:
        raise UsageError(
            f"The state directory {state} can be written by others, who could so have the soak change "
            f"anything: 'chown' it to the user that soaks and 'chmod go-w' it."
        )
