# SPDX-License-Identifier: GPL-2.0-only
"""The command `dax-soak`.

Each subcommand imports its modules when it runs, because imports are slow in an emulated guest.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from soak import __version__
from soak.config import options as take
from soak.errors import UsageError
from soak.files.printable import printable
from soak.model.exit_codes import BISECT, INTERRUPTED, PLAIN, is_bisecting
from soak.process.output import ignore_closed_output, open_standard_streams, put, put_error
from soak.supervisor.control import (
    CONTINUE,
    PAUSE,
    STOP,
    ignore_ending_signals,
    interrupt_on_ending_signals,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from soak.lab.guest.opened import LabPlaces


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 pass, 1 fail, 2 usage, 3 unknown, 70 crash.

    `lab --bisect` returns the codes of `git bisect run` (see soak.model.exit_codes).
    """
    open_standard_streams()
    words = sys.argv[1:] if arguments is None else arguments
    bisecting = is_bisecting(words)
    # Other commands install their own handlers, and callers in this process keep theirs.
    handling = arguments is None and words[:1] in (["lab"], ["bench"])
    if handling:
        interrupt_on_ending_signals()
    try:
        _check_working_directory()
        options = make_parser().parse_args(words)
        work: Callable[[argparse.Namespace], int] = options.work
        return work(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except UsageError as error:
        put_error(f"dax-soak: {printable(str(error))}")
        return BISECT.usage if bisecting else PLAIN.usage
    except Exception as error:  # noqa: BLE001 - logged with its traceback, and a distinct exit code
        from soak.log import log_crash

        log_crash("dax-soak", error)
        # Python's own exit code, 1, would mean that the kernel failed.
        return BISECT.crash if bisecting else PLAIN.crash
    finally:
        if handling:
            # From here on no signal may replace the exit code.
            ignore_ending_signals()


def _check_working_directory() -> None:
    """Refuse a deleted working directory, in which relative paths cannot be resolved."""
    try:
        Path.cwd()
    except OSError:
        raise UsageError("The working directory no longer exists: change to another one.") from None


class _Parser(argparse.ArgumentParser):
    """Reports a usage error in one sentence instead of printing the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see '{self.prog} --help')")


@functools.cache
def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="dax-soak", description="Tests a real kernel's DMA and DAX guarantees.")
    parser.add_argument("--version", action="version", version=f"dax-soak {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, options, work, meaning in (
        ("lab", take.lab, _lab, "boot a virtual machine and soak in it"),
        ("run", take.run, _run, "soak on this machine's own devices"),
        ("check", take.check, _check, "print what this machine offers and what it lacks"),
        ("exporter", take.exporter, _exporter, "serve the metrics of a run"),
        ("bench", take.bench, _bench, "measure the speed of the soak in the lab"),
        ("top", take.top, _top, "show a live view of a run in the terminal"),
        ("report", take.report, _report, "print the verdict and findings of a run"),
        (PAUSE, take.newest, _request, "pause a running soak, for work on the machine"),
        (CONTINUE, take.newest, _request, "resume a paused soak"),
        (STOP, take.newest, _request, "stop a running soak"),
        ("plant", take.plant, _plant, "plant a fault in a running lab"),
        ("install", take.install, _install, "write the systemd units"),
        ("restore", take.nothing, _restore, "undo the changes of a dead soak on this machine"),
        ("expectations", take.nothing, _expectations, "print the kernel's expected behaviour"),
        ("known-issues", take.nothing, _known_issues, "print the known issues"),
        ("faults", take.nothing, _faults, "print the faults that the lab can plant"),
        ("scenarios", take.nothing, _scenarios, "print the mixes of operations"),
    ):
        command = commands.add_parser(name, help=meaning)
        options(command)
        command.set_defaults(work=work, word=name)
    # Internal: a subcommand without help text is not listed.
    measuring = commands.add_parser("measure")
    take.measure(measuring)
    measuring.set_defaults(work=_measure)
    return parser


def _lab(options: argparse.Namespace) -> int:
    from soak.lab.command import lab

    return lab(options)


def _run(options: argparse.Namespace) -> int:
    from soak.config.sections import load_config
    from soak.workload.plan import make_plan, with_overrides

    config = with_overrides(
        load_config(options.config),
        duration=options.duration,
        seed=options.seed,
        scenario=options.scenario,
    )
    if options.print_choices is not None:
        from soak.report.choices import print_choices

        return print_choices(make_plan(config), options.print_choices)
    if options.ledger is not None:
        from soak.lab.guest.soak import soak_in_lab

        soak_in_lab(config, _lab_places(options))
        return 0
    from soak.supervisor.local import Serving, soak_here

    serving = Serving(config.exporter.listen, options.watch_exporter)
    return soak_here(config, options.run_dir, serving, resume=options.resume, strict=options.strict)


def _bench(options: argparse.Namespace) -> int:
    from soak.lab.bench.command import bench

    return bench(options)


def _measure(options: argparse.Namespace) -> int:
    from soak.config.sections import load_config
    from soak.lab.bench.measure import measure

    measure(load_config(options.config), _lab_places(options))
    return 0


def _lab_places(options: argparse.Namespace) -> LabPlaces:
    from soak.lab.guest.opened import LabPlaces

    return LabPlaces(
        options.run_id,
        options.ledger,
        options.journal_port,
        options.control,
        mirror=options.mirror_ledger,
    )


@ignore_closed_output
def _check(options: argparse.Namespace) -> int:
    from soak.machine.check_line import Finding, State
    from soak.machine.command import check_against, check_machine
    from soak.machine.survey import Section
    from soak.workload.plan import make_plan

    if options.config is not None:
        return check_against(options.config, make_plan, as_json=options.json)
    from soak.lab.requirements import check, look

    if options.install:
        return check(install=True, for_tests=options.for_tests)
    needs = tuple(
        Finding(answer.subject, State.OK if answer.good else State.MISSING, answer.says)
        for answer in look()
    )
    lab = Section("lab", "The lab, which needs no hardware", needs)
    return check_machine(lab, as_json=options.json, everything=options.all, write=options.write)


def _exporter(options: argparse.Namespace) -> int:
    from exporter.__main__ import main as serve
    from soak.run_directory import LATEST, LEDGER, find_latest, find_run

    listen = ["--listen", options.listen] if options.listen else []
    runs = find_latest(options.run)
    if runs is not None:
        return serve(["--run-dir", str(runs), "--ledger", f"{LATEST}/{LEDGER}", *listen])
    return serve(["--run-dir", str(find_run(options.run)), *listen])


@ignore_closed_output
def _install(options: argparse.Namespace) -> int:
    from soak.config.listen import DEFAULT_LISTEN, read_listen
    from soak.machine.service.install import install, uninstall

    if options.uninstall:
        return uninstall(root=options.root, dry_run=options.dry_run)
    listen = options.exporter_listen or DEFAULT_LISTEN
    _, port = read_listen(listen)
    if port == 0:
        raise UsageError("--exporter-listen has port 0, expected one above 0 for scrapers to use.")
    return install(root=options.root, config=options.config, listen=listen, dry_run=options.dry_run)


@ignore_closed_output
def _top(options: argparse.Namespace) -> int:
    from soak.report.top.terminal import watch
    from soak.run_directory import LEDGER, VERDICT, find_run

    directory = find_run(options.run)
    return watch(directory / LEDGER, directory / VERDICT, interval=options.interval, once=options.once)


def _report(options: argparse.Namespace) -> int:
    from soak.journal.reading import read_given_journal
    from soak.report.text import text_report
    from soak.run_directory import JOURNAL, find_run
    from soak.verdict import judge

    directory = find_run(options.run)
    verdict = judge(read_given_journal(directory / JOURNAL), strict=options.strict)
    shown = verdict.to_json() if options.format == "json" else text_report(verdict, directory)
    put(shown)
    return PLAIN.verdicts[verdict.verdict]


def _request(options: argparse.Namespace) -> int:
    from soak.run_directory import find_run
    from soak.supervisor.control import send

    put(f"{printable(send(find_run(options.run), options.word))}\n")
    return 0


def _plant(options: argparse.Namespace) -> int:
    from soak.lab.guest.faults import check_fault
    from soak.run_directory import find_run
    from soak.supervisor.control import PLANT, send

    check_fault(options.fault)
    put(f"{printable(send(find_run(options.run), f'{PLANT}{options.fault}'))}\n")
    return 0


def _restore(_options: argparse.Namespace) -> int:
    from soak.machine.changes import FAILED
    from soak.supervisor.restoring import restore_here

    settled = restore_here()
    for one in settled:
        put(f"{one.summary}\n")
    if not settled:
        put("Nothing to restore.\n")
    return 1 if any(one.event == FAILED for one in settled) else 0


def _expectations(_options: argparse.Namespace) -> int:
    from soak.report.tables import expectations_table

    put(expectations_table())
    return 0


def _known_issues(_options: argparse.Namespace) -> int:
    from soak.report.tables import known_issues_table

    put(known_issues_table())
    return 0


def _faults(_options: argparse.Namespace) -> int:
    from soak.lab.guest.faults import FAULTS
    from soak.report.tables import faults_table

    put(faults_table(FAULTS.values()))
    return 0


def _scenarios(_options: argparse.Namespace) -> int:
    from soak.report.tables import scenarios_table

    put(scenarios_table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
