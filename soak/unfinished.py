"""Which run a start goes on with: the newest that was cut short, or a new one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import tomli_w

from soak import rundir
from soak.config import load_config
from soak.errors import UsageError
from soak.journal import read_journal
from soak.journal_events import understood

if TYPE_CHECKING:
    from pathlib import Path

    from soak.config import Config

_SPACE_NEEDED: Final = 64 << 20


@dataclass(frozen=True)
class Story:
    """What the journal of a run says of its beginning and its end."""

    started: dict[str, Any] | None
    lab: dict[str, Any] | None
    ended: bool

    @classmethod
    def of(cls, directory: Path) -> Story:
        started = lab = None
        ended = False
        for event in understood(read_journal(directory / rundir.JOURNAL)):
            match event["event"]:
                case "run.started":
                    started = started or event
                case "lab.started":
                    lab = lab or event
                case "run.ended":
                    ended = True
                case "run.resumed":
                    ended = False
        return cls(started, lab, ended)


@dataclass(frozen=True)
class ChosenRun:
    """A run of this machine: `resumed`, or one whose directory is yet to be made."""

    run_id: str
    resumed: bool
    config: Config
    directory: Path | None

    def make(self) -> Path:
        """Make the directory of a new run, and return it.

        Raises:
            UsageError: it cannot be made.
        """
        if self.resumed and self.directory is not None:
            return self.directory
        path = rundir.make_run_directory(self.directory, self.run_id, _SPACE_NEEDED)
        (path / rundir.CONFIG).write_text(tomli_w.dumps(self.config.to_table()))
        return path


def choose_run(config: Config, wanted: Path | None, *, resume: bool) -> ChosenRun:
    """Choose the run directory `wanted`, or else the newest; begin a run where none was cut short.

    Raises:
        UsageError: the run that was cut short had another configuration, or `wanted` is in use.
    """
    found = wanted if wanted is not None else rundir.newest_run()
    if resume and found is not None and (found / rundir.JOURNAL).exists():
        story = Story.of(found)
        if story.started is not None and story.lab is None and not story.ended:
            _check_same(config, found)
            return ChosenRun(str(story.started["run_id"]), True, config, found.resolve())
    if wanted is not None:
        rundir.check_new(wanted)
    return ChosenRun(rundir.new_run_id(), False, config, wanted)


def _check_same(config: Config, directory: Path) -> None:
    """Refuse to go on with a run that was made of something else."""
    before, now = load_config(directory / rundir.CONFIG).to_table(), config.to_table()
    if before == now:
        return
    changed = [name for name in (*before, *now) if before.get(name) != now.get(name)]
    raise UsageError(
        f"The run in {directory} was cut short and had another configuration, in "
        f"[{'], ['.join(dict.fromkeys(changed))}]: put that back, or start a new run without --resume."
    )
