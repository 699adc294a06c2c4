# SPDX-License-Identifier: GPL-2.0-only
"""The one owner of the changes to a machine: makes, records and undoes them."""

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
    """Changes a machine, and records its previous state on disk before each change.

    No call hangs: a helper process with a deadline makes each change. Only the process that opened an
    instance may use it.
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
        """Take the lock and read the record in the directory `state`, making it if missing.

        Changes of an earlier soak stay until `recover`.

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
        """Changes not yet undone, the oldest first."""
        return tuple(self._record.entries)

    def recover(self) -> list[Settled]:
        """Undo the changes of an earlier soak. Call this before any change."""
        settled = []
        if self._record.damage:
            settled.append(Settled(FAILED, Level.ERROR, "record", "", "", self._record.damage))
        if self._hung:
            settled.append(
                Settled(
                    FAILED,
                    Level.ERROR,
                    "helper",
                    "",
                    "",
                    "A helper of an earlier soak still hangs in the kernel, and may change the machine "
                    "when it returns: run 'dax-soak restore' after it ends.",
                )
            )
        return settled + self.restore()

    def restore(self) -> list[Settled]:
        """Undo all changes, the newest first. A change that cannot be undone stays recorded."""
        self._check_owner()
        settled = []
        kept: set[tuple[str, str]] = set()
        for entry in reversed(self._record.entries):
            if entry.kind == "directory" and entry.target in self._left:
                continue
            carried = any(kind in KINDS[entry.kind].carries for kind, _ in kept)
            if carried or (entry.kind, entry.target) in kept:
                # A change below one that could not be undone would look like another program's.
                continue
            settled.append(self._settle(entry))
            if settled[-1].event == FAILED:
                kept.add((entry.kind, entry.target))
        return settled

    def undo(self, number: int) -> Settled:
        """Undo one change.

        Raises:
            KeyError: no change has that number.
        """
        for entry in self._record.entries:
            if entry.number == number:
                return self._settle(entry)
        raise KeyError(number)

    def bind(self, function: str) -> int | None:
        """Bind a PCI function to vfio-pci; None if it is bound already.

        The caller has checked its IOMMU group and its users (`soak.machine.pci`).

        Raises:
            UsageError: the function does not exist, or vfio-pci does not bind it.
        """
        if driver_of(self._machine, function) == VFIO_PCI:
            return None
        return self._change("binding", function)

    def load_module(self, name: str) -> int | None:
        """Load a module of `MODULES`; None if the kernel has it already.

        Raises:
            UsageError: it cannot be loaded.
        """
        if name not in MODULES:
            raise UsageError(f"The soak does not load module {name!r} (only {', '.join(MODULES)}).")
        return None if is_there(self._machine, name) else self._change("module", name)

    def set_sysctl(self, name: str, value: str) -> int:
        """Set a kernel setting such as vm.max_map_count.

        Raises:
            UsageError: the setting does not exist, or the kernel refuses the value.
        """
        return self._change("sysctl", name, wanted=" ".join(value.split()))

    def tune(self, demand: Demand, span: Span = Span.RUN) -> list[int]:
        """Change the kernel settings of `NEEDS` that do not meet `demand`; return their numbers.

        Raises:
            UsageError: a setting cannot be changed; those before it are changed.
        """
        return [
            self.set_sysctl(name, str(value))
            for name, value in wanted_values(self._machine, demand, span)
        ]

    @contextlib.contextmanager
    def readable_addresses(self, report: Callable[[Settled], None]) -> Iterator[None]:
        """Make the kernel show symbol addresses to root inside the block; `report` the outcome.

        Raises:
            UsageError: the kernel does not allow it.
        """
        numbers = self.tune(Demand(0, 0), Span.READING_ADDRESSES)
        try:
            yield
        finally:
            for number in reversed(numbers):
                report(self.undo(number))

    def make_directory(self, path: Path) -> Path:
        """Make a directory that only its owner may enter; `restore` removes it with its contents.

        Returns its path without symbolic links.

        Raises:
            UsageError: it exists, or cannot be made.
        """
        resolved = Path(os.path.realpath(path.parent)) / path.name
        self._change("directory", str(resolved))
        return resolved

    def leave_directory(self, path: Path) -> None:
        """Make `restore` skip a directory with a file that cannot be removed; it stays recorded."""
        self._left.add(str(path))

    def close(self) -> None:
        """Release the lock. Changes not yet undone stay recorded."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _change(self, kind: str, target: str, **wanted: Any) -> int:  # noqa: ANN401 - JSON values
        """Look, record, change. If the change fails, undo its partial effects."""
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
        """Undo one entry, then remove it from the record."""
        self._check_owner()
        kind, machine = KINDS[entry.kind], self._machine
        if entry.boot_id != machine.boot and not kind.outlives_boot:
            event, level = FORGOTTEN, Level.INFO
            summary = f"{entry.kind} {entry.target} of run {entry.run_id}: a reboot has undone it"
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
                    f"The {entry.kind} {entry.target} could not be restored ({str(error).rstrip('.')}): "
                    f"{by_hand}. The next start and 'dax-soak restore' try again.",
                )
            restored = outcome == Outcome.RESTORED
            event, level = (RESTORED, Level.INFO) if restored else (FORGOTTEN, Level.WARNING)
        return self._drop(entry, summary, event, level)

    def _drop(
        self, entry: Entry, summary: str, event: str = FORGOTTEN, level: Level = Level.INFO
    ) -> Settled:
        """Remove an entry from the record."""
        try:
            self._record.remove(entry.number)
        except OSError as error:
            return _settled(
                entry,
                FAILED,
                Level.ERROR,
                f"{summary or 'Nothing was changed'}; the record of changes cannot be written "
                f"({error.strerror}): free some space, then run 'dax-soak restore'.",
            )
        return _settled(entry, event, level, summary)

    def _helped(self, work: Callable[[], Any], seconds: float, prefix: str = "") -> Any:  # noqa: ANN401 - any JSON value
        """Run `work` in a helper process, holding the lock of helpers.

        `prefix` begins the message if the helper itself died or timed out.

        Raises:
            UsageError: the kernel refused the work, or it failed or timed out.
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
    """Undo the changes of an earlier soak, without starting another.

    `also` runs while the lock still keeps another soak from starting.

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
    """Wrap `work` for a helper: it dies with the soak, and returns a kernel's refusal as a message."""

    def guarded() -> list[Any]:
        # Close inherited descriptors: unbinding a function waits for its last descriptor, and a helper
        # that held one would wait for itself for ever.
        for descriptor in inherited:
            # The lock of the machine was closed by the fork itself.
            with contextlib.suppress(OSError):
                os.close(descriptor)
        # Ctrl-C goes to the whole process group: the soak handles it, and lets its helpers finish.
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
    """Make the directory of the record; refuse one that other users can write to."""
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
            f"Other users can write to the state directory {state}, and so could make the soak change "
            f"anything: 'chown' it to the user that soaks, and 'chmod go-w' it."
        )
