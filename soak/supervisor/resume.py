# SPDX-License-Identifier: GPL-2.0-only
"""Which run a start goes on with: the newest that was cut short, or a new one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import tomli_w

from soak import run_directory
from soak.config.sections import load_config
from soak.errors import UsageError
from soak.journal.events import valid_events
from soak.journal.reading import journal_exists, read_given_journal
from soak.run_directory import RunDirectory

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from soak.config.sections import Config

_SPACE_NEEDED: Final = 64 << 20


@dataclass(frozen=True)
class RunHistory:
    """What the journal of a run says of its beginning and its end."""

    started: dict[str, Any] | None
    lab: dict[str, Any] | None
    ended: bool

    @classmethod
    def of(cls, directory: Path) -> RunHistory:
        """Read the journal of a run.

        Raises:
            UsageError: it cannot be read.
        """
        started = lab = None
        ended = False
        for event in valid_events(read_given_journal(directory / run_directory.JOURNAL)):
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

    def open(self) -> RunDirectory:
        """Make the directory of a new run, or take that of one that goes on.

        Raises:
            UsageError: it cannot be made, is in use, or others may write to it.
        """
        if self.resumed and self.directory is not None:
            return RunDirectory.take(self.directory, self.run_id)
        made = RunDirectory.make(self.directory, self.run_id, _SPACE_NEEDED)
        try:
            (made.path / run_directory.CONFIG).write_text(tomli_w.dumps(self.config.to_table()))
        except OSError as error:
            made.close()
            raise UsageError(
                f"The run directory {made.path} cannot be written: {error.strerror}."
            ) from None
        return made


def choose_run(config: Config, wanted: Path | None, *, resume: bool) -> ChosenRun:
    """Choose the run to go on with, or begin one.

    With `resume` that is the run in `wanted`, or else the newest of this machine that was cut short and
    had this configuration. It is looked for among all runs: `latest` may name one of the lab.

    Raises:
        UsageError: the newest run was cut short and had another configuration, or `wanted` is in use.
    """
    if resume:
        known = run_directory.begun_runs() if wanted is None else [wanted]
        cut_short = _cut_short(config, known)
        if cut_short is not None:
            return cut_short
    if wanted is not None:
        run_directory.check_new(wanted)
    return ChosenRun(run_directory.new_run_id(), False, config, wanted)


def _cut_short(config: Config, known: Sequence[Path]) -> ChosenRun | None:
    """Find the newest run of this machine that did not come to its end, and was made of the same.

    Raises:
        UsageError: the newest of all did not, and was made of something else.
    """
    newest = True
    for directory in known:
        story = _own_story(directory)
        if story is None or story.started is None:
            continue
        if not story.ended:
            changed = _changed(config, directory)
            if not changed:
                run_id = str(story.started["run_id"])
                return ChosenRun(run_id, True, config, directory.resolve())
            if newest:
                raise UsageError(
                    f"The run in {directory} was cut short and had another configuration, in "
                    f"[{'], ['.join(changed)}]: put that back, or start a new run without --resume."
                )
        newest = False
    return None


def _own_story(directory: Path) -> RunHistory | None:
    """Return what became of a run of this machine; None where none began, or one of the lab did."""
    if not journal_exists(directory / run_directory.JOURNAL):
        return None
    started = None
    for event in valid_events(read_given_journal(directory / run_directory.JOURNAL)):
        if event["event"] == "lab.started":
            return None
        if event["event"] == "run.started":
            started = event
            break
    if (directory / run_directory.VERDICT).exists():
        # It is written at the end: the journal of a run of days need not be read for that.
        return RunHistory(started, None, ended=True)
    return RunHistory.of(directory)


def _changed(config: Config, directory: Path) -> list[str]:
    """Return the sections in which a run had another configuration."""
    before, now = load_config(directory / run_directory.CONFIG).to_table(), config.to_table()
    return [name for name in dict.fromkeys((*before, *now)) if before.get(name) != now.get(name)]
