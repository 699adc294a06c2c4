# SPDX-License-Identifier: GPL-2.0-only
"""Finds the lab run that `--resume` continues after its guest has died."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from soak import run_directory
from soak.config.sections import load_config
from soak.errors import UsageError
from soak.ledger.layout import LedgerError
from soak.ledger.reader import LedgerReader
from soak.run_directory import RunDirectory
from soak.supervisor.resume import RunHistory

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from pathlib import Path

    from soak.config.sections import Config


@dataclass(frozen=True)
class PriorRun:
    """The parameters of the run to continue."""

    directory: Path
    run_id: str
    config: Config
    filesystem: str
    kernel: str


@contextlib.contextmanager
def past_run(options: argparse.Namespace) -> Iterator[PriorRun]:
    """Find the run that `--resume` names, and lock it inside the block.

    Raises:
        UsageError: it does not exist, is still running, has ended, or the command line contradicts it.
    """
    for given in ("config", "run_dir", "seed", "scenario", "duration"):
        if getattr(options, given) is not None:
            raise UsageError(
                f"--{given.replace('_', '-')} cannot be used with --resume, which keeps the run's own."
            )
    directory = run_directory.find_run(options.resume)
    with RunDirectory.take(directory, directory.name):
        yield _past(directory)


def _past(directory: Path) -> PriorRun:
    history = RunHistory.of(directory)
    if history.lab is None or history.ended:
        raise UsageError(
            f"The run in {directory} "
            + ("has ended" if history.ended else "is not a lab run, or never booted")
            + ": start a new one."
        )
    try:
        with LedgerReader.open(directory / run_directory.LEDGER) as reader:
            run_id, filesystem = (str(reader.layout.run[name]) for name in ("run_id", "filesystem"))
    except (OSError, LedgerError, LookupError) as error:
        raise UsageError(f"The ledger in {directory} cannot be read: {error}.") from None
    config = load_config(directory / run_directory.CONFIG)
    return PriorRun(directory, run_id, config, filesystem, str(history.lab["kernel"]))
