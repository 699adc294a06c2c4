"""The command `dax-soak`.

What a subcommand needs is imported when it runs: in the guest of a lab, imports are what is slow.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from soak import __version__
from soak.control import CONTINUE, PAUSE, STOP
from soak.errors import UsageError
from soak.exit_codes import BISECT, PLAIN, is_bisecting
from soak.output import complain, done_when_unread, open_standard_streams, put
from soak.printable import printable
from soak.verdict import EXIT_CODES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from soak.plan import RunPlan


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 pass, 1 fail, 2 usage, 3 unknown, 70 a crash.

    With `lab --bisect` they are those that `git bisect run` reads (see soak.exit_codes).
    """
    open_standard_streams()
    words = sys.argv[1:] if arguments is None else arguments
    bisecting = is_bisecting(words)
    try:
        options = make_parser().parse_args(words)
        work: Callable[[argparse.Namespace], int] = options.work
        return work(options)
    except UsageError as error:
        complain(f"dax-soak: {printable(str(error))}")
        return BISECT.usage if bisecting else PLAIN.usage
    except Exception as error:  # noqa: BLE001 - told in full, and by an exit code of its own
        from soak.log import log_crash

        log_crash("dax-soak", error)
        # Python's own exit code for it would tell that the kernel failed.
        return BISECT.crash if bisecting else PLAIN.crash


class _Parser(argparse.ArgumentParser):
    """Tells a mistake in one sentence; the whole usage is for those who ask for help."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see '{self.prog} --help')")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = _Parser(
        prog="dax-soak", description="Proves, on a real kernel, that DMA and DAX get along."
    )
    parser.add_argument("--version", action="version", version=f"dax-soak {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_lab(commands.add_parser("lab", help="boot a virtual machine and soak in it"))
    _add_run(commands.add_parser("run", help="soak on this machine's own devices"))
    check = commands.add_parser("check", help="say what this machine offers and what is missing")
    _add_check(check)
    exporter = commands.add_parser("exporter", help="serve the metrics of a run")
    exporter.add_argument(
        "run",
        metavar="RUN",
        help="run directory, run id or 'latest': the newest, also when another becomes that",
    )
    exporter.add_argument("--listen", default=None, metavar="HOST:PORT")
    exporter.set_defaults(work=_exporter)
    _add_bench(commands.add_parser("bench", help="measure in the lab how fast the soak is"))
    _add_measure(commands.add_parser("measure"))
    top = commands.add_parser("top", help="watch a run in the terminal")
    top.add_argument(
        "run", nargs="?", default="latest", metavar="RUN", help="run directory, run id or 'latest'"
    )
    top.add_argument(
        "--interval",
        type=_duration,
        metavar="TIME",
        help="between two looks (2s); where the output is no terminal, look again and again",
    )
    top.add_argument("--once", action="store_true", help="look once and end")
    top.set_defaults(work=_top)
    report = commands.add_parser("report", help="tell what a run found")
    report.add_argument("run", metavar="RUN", help="run directory, run id or 'latest'")
    report.add_argument("--format", choices=("text", "json"), default="text")
    report.add_argument("--strict", action="store_true", help="a known issue fails the run, too")
    report.set_defaults(work=_report)
    for word, meaning in (
        (PAUSE, "bring a running soak to rest, for work on the machine"),
        (CONTINUE, "have a paused soak go on"),
        (STOP, "end a running soak in order"),
    ):
        saying = commands.add_parser(word, help=meaning)
        saying.add_argument("run", nargs="?", default="latest", metavar="RUN")
        saying.set_defaults(work=_say, word=word)
    plant = commands.add_parser("plant", help="plant a fault in a lab's soak that is running")
    plant.add_argument("fault", metavar="FAULT", help="as 'dax-soak faults' lists them")
    plant.add_argument("run", nargs="?", default="latest", metavar="RUN")
    plant.set_defaults(work=_plant)
    _add_install(commands.add_parser("install", help="write the systemd units"))
    commands.add_parser(
        "restore", help="put back what a soak that died has changed on this machine"
    ).set_defaults(work=_restore)
    for name, work, meaning in (
        ("expectations", _expectations, "print what a kernel owes"),
        ("known-issues", _known_issues, "print the violations that are understood"),
        ("faults", _faults, "print the faults that a lab can plant"),
        ("scenarios", _scenarios, "print the mixes of operations"),
    ):
        commands.add_parser(name, help=meaning).set_defaults(work=work)
    return parser


def _add_lab(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _add_machine(parser)
    add("--fault", action="append", default=[], metavar="NAME[:SECONDS]", help="plant a fault")
    add("--listen", default=None, metavar="HOST:PORT", help="where metrics are served")
    add("--run-dir", type=Path, metavar="DIR", help="a new directory for the run")
    add(
        "--keep",
        action="store_true",
        help="keep the NVDIMM, so that the run can be resumed when its guest has died",
    )
    add("--resume", metavar="RUN", help="go on with a run whose guest has died, in a new boot")
    add("--strict", action="store_true", help="a known issue fails the run, too")
    add(
        "--bisect",
        action="store_true",
        help="exit as 'git bisect run' reads it: 0 good, 1 bad, 125 cannot be judged, "
        "255 wrong usage",
    )
    add("-c", "--config", type=Path, metavar="FILE", help="a soak.toml")
    add(
        "--until-covered",
        action="store_true",
        help="end as soon as all is done and seen that a pass needs, however long that takes within "
        "--duration",
    )
    add(
        "--linger",
        type=_duration,
        default=20.0,
        metavar="TIME",
        help="how long metrics stay up after a run that ended badly (20s)",
    )
    add(
        "--mirror-ledger",
        action="store_true",
        help="keep the ledger in the guest's own memory and copy it to the host, as is done "
        "by itself where shared memory is slow",
    )
    # For tests: more hardware, and something else than a soak to run in the guest.
    add("--device", action="append", default=[], help=argparse.SUPPRESS)
    # The file that is run, and what it imports, by their paths from where they are imported.
    add("--script", type=Path, nargs="+", help=argparse.SUPPRESS)
    add("--nvdimm", type=Path, help=argparse.SUPPRESS)
    add("--package", action="append", default=[], help=argparse.SUPPRESS)
    _add_choices(parser)
    parser.set_defaults(work=_lab)


def _add_machine(parser: argparse.ArgumentParser) -> None:
    """Add the options of everything that boots the lab."""
    add = parser.add_argument
    add(
        "--kernel",
        help="debian:6.1 (default), debian:6.12, debian:sid; build:6.12, built from Debian's source "
        "with iommufd and the like; host, the kernel of this machine; a bzImage file; or a "
        "directory in which a kernel was built",
    )
    add("--modules", type=Path, metavar="DIR", help="the modules of a kernel given as a file")
    add("--filesystem", default="ext4", choices=("ext4", "xfs"))
    add("--accel", default="auto", choices=("auto", "kvm", "tcg"))
    add("--append", default="", metavar="TEXT", help="more of the kernel's command line")
    add(
        "--boot-timeout",
        type=_duration,
        default=180.0,
        metavar="TIME",
        help="how long the guest may take to answer (3m)",
    )


def _add_bench(parser: argparse.ArgumentParser) -> None:
    _add_machine(parser)
    add = parser.add_argument
    add("--duration", type=_duration, default=60.0, metavar="TIME", help="how long to measure (1m)")
    add("--format", choices=("text", "json"), default="text")
    parser.set_defaults(work=_bench)


def _add_measure(parser: argparse.ArgumentParser) -> None:
    """Add what `bench` runs in its guest: the options are those that a guest gives."""
    add = parser.add_argument
    add("-c", "--config", type=Path, required=True)
    add("--run-id", required=True)
    add("--ledger", type=Path, required=True)
    add("--journal-port", type=Path, required=True)
    add("--control", type=Path)
    add("--mirror-ledger", action="store_true")
    parser.set_defaults(work=_measure)


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-c", "--config", type=Path, required=True, metavar="FILE", help="a soak.toml")
    add("--run-dir", type=Path, metavar="DIR", help="a new directory for the run")
    add("--strict", action="store_true", help="a known issue fails the run, too")
    add(
        "--resume",
        action="store_true",
        help="go on with the newest run where a crash or a reboot cut it short, else begin one",
    )
    add(
        "--watch-exporter",
        metavar="HOST:PORT",
        help="as a service, feed the watchdog only while the exporter there answers",
    )
    add("--run-id", help=argparse.SUPPRESS)
    add("--ledger", type=Path, help=argparse.SUPPRESS)
    add("--journal-port", type=Path, help=argparse.SUPPRESS)
    add("--control", type=Path, help=argparse.SUPPRESS)
    add("--mirror-ledger", action="store_true", help=argparse.SUPPRESS)
    _add_choices(parser)
    parser.set_defaults(work=_run)


def _add_install(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--root", type=Path, metavar="DIR", help="write below this directory")
    add(
        "--config",
        type=Path,
        metavar="FILE",
        help="what to soak (/etc/dax-soak/soak.toml); an example is written where there is none",
    )
    add(
        "--exporter-listen",
        metavar="HOST:PORT",
        help="where metrics are served (127.0.0.1:9823)",
    )
    add("--dry-run", action="store_true", help="print what would be written")
    add("--uninstall", action="store_true", help="remove what was written")
    parser.set_defaults(work=_install)


def _add_check(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--install",
        action="store_true",
        help="install what the lab misses (as root), and look at the lab's needs alone",
    )
    what.add_argument(
        "-c", "--config", type=Path, metavar="FILE", help="say whether the machine fits a soak.toml"
    )
    what.add_argument(
        "--write", type=Path, metavar="FILE", help="write a soak.toml for what was found"
    )
    parser.add_argument("--for-tests", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--all", action="store_true", help="tell everything of the kernel, hardware or not"
    )
    parser.set_defaults(work=_check)


def _add_choices(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--duration", type=_duration, metavar="TIME", help="such as 90s, 2m or 1h30m")
    add("--seed", type=_seed, metavar="N", help="from which all choices follow")
    add("--scenario", help="the mix of operations; 'dax-soak scenarios' lists them")
    add("--print-choices", type=int, metavar="N", help="print each worker's first N and end")


def _duration(text: str) -> float:
    from soak.config import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not {error}") from None


def _seed(text: str) -> int:
    from soak.config import parse_seed

    try:
        return parse_seed(int(text) if text.isdecimal() else text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not {error}") from None


def _lab(options: argparse.Namespace) -> int:
    from soak.lab.command import lab

    return lab(options)


def _run(options: argparse.Namespace) -> int:
    from soak.config import load_config
    from soak.plan import make_plan, with_overrides

    config = with_overrides(
        load_config(options.config),
        duration=options.duration,
        seed=options.seed,
        scenario=options.scenario,
    )
    if options.print_choices is not None:
        return print_choices(make_plan(config), options.print_choices)
    if options.ledger is not None:
        from soak.lab.guest_soak import LabPlaces, soak_in_lab

        places = LabPlaces(
            options.run_id,
            options.ledger,
            options.journal_port,
            options.control,
            mirror=options.mirror_ledger,
        )
        soak_in_lab(config, places)
        return 0
    from soak.daemon import Serving, soak_here

    serving = Serving(config.exporter.listen, options.watch_exporter)
    return soak_here(config, options.run_dir, serving, resume=options.resume, strict=options.strict)


def _bench(options: argparse.Namespace) -> int:
    from soak.lab.bench import bench

    return bench(options)


def _measure(options: argparse.Namespace) -> int:
    from soak.bench.measure import measure
    from soak.config import load_config

    config = load_config(options.config)
    measure(
        config, options.run_id, options.ledger, options.journal_port,
        mirrored=options.mirror_ledger,
    )  # fmt: skip
    return 0


def print_choices(plan: RunPlan, count: int) -> int:
    """Print what each worker of a plan does first."""
    from soak.plan import choice_line

    for worker, choice in plan.first_choices(count):
        if not put(f"{choice_line(worker, choice)}\n"):
            break
    return 0


@done_when_unread
def _check(options: argparse.Namespace) -> int:
    from soak.machine.command import check_against, check_machine
    from soak.machine.finding import Finding, State
    from soak.machine.survey import Section
    from soak.plan import make_plan

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
    from soak.rundir import LATEST, LEDGER, find_latest, find_run

    listen = ["--listen", options.listen] if options.listen else []
    runs = find_latest(options.run)
    if runs is not None:
        return serve(["--run-dir", str(runs), "--ledger", f"{LATEST}/{LEDGER}", *listen])
    return serve(["--run-dir", str(find_run(options.run)), *listen])


@done_when_unread
def _install(options: argparse.Namespace) -> int:
    from soak.listen import DEFAULT_LISTEN, parse_listen
    from soak.systemd.install import install, uninstall

    if options.uninstall:
        return uninstall(root=options.root, dry_run=options.dry_run)
    listen = options.exporter_listen or DEFAULT_LISTEN
    _, port = parse_listen(listen, "--exporter-listen")
    if port == 0:
        raise UsageError("--exporter-listen needs a port above 0: nobody would find the exporter.")
    return install(root=options.root, config=options.config, listen=listen, dry_run=options.dry_run)


@done_when_unread
def _top(options: argparse.Namespace) -> int:
    from soak.report.top import watch
    from soak.rundir import LEDGER, VERDICT, find_run

    directory = find_run(options.run)
    return watch(
        directory / LEDGER, directory / VERDICT, interval=options.interval, once=options.once
    )


def _report(options: argparse.Namespace) -> int:
    from soak.journal import read_journal
    from soak.report.text import text_report
    from soak.rundir import JOURNAL, find_run
    from soak.verdict import judge

    directory = find_run(options.run)
    verdict = judge(read_journal(directory / JOURNAL), strict=options.strict)
    shown = verdict.to_json() if options.format == "json" else text_report(verdict, directory)
    put(shown)
    return EXIT_CODES[verdict.verdict]


def _say(options: argparse.Namespace) -> int:
    from soak.control import say
    from soak.rundir import find_run

    put(f"{printable(say(find_run(options.run), options.word))}\n")
    return 0


def _plant(options: argparse.Namespace) -> int:
    from soak.control import PLANT, say
    from soak.lab.faults import check_fault
    from soak.rundir import find_run

    check_fault(options.fault)
    put(f"{printable(say(find_run(options.run), f'{PLANT}{options.fault}'))}\n")
    return 0


def _restore(_options: argparse.Namespace) -> int:
    from soak.custody import FAILED
    from soak.restoring import restore_here

    settled = restore_here()
    for one in settled:
        put(f"{one.summary}\n")
    if not settled:
        put("There was nothing to put back.\n")
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
    from soak.report.tables import faults_table

    put(faults_table())
    return 0


def _scenarios(_options: argparse.Namespace) -> int:
    from soak.report.tables import scenarios_table

    put(scenarios_table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
