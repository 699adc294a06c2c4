# SPDX-License-Identifier: GPL-2.0-only
"""Run in a guest with systemd: the units as `dax-soak install` writes them, under a real service manager.

The manager is the first process of a PID namespace, as the lab's own program is that of the machine.
It reports what it saw, scene by scene; tests/boots/test_systemd.py asserts.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from soak.abi.libc import LIBC, checked
from tests.boots.harness.guest_run import (
    PROGRAM,
    Newest,
    configure,
    exporters,
    left,
    listen_on_loopback,
    metrics,
)
from tests.boots.harness.in_guest import DEADLINE, bound, play, step

if TYPE_CHECKING:
    from collections.abc import Callable

CONFIG: Final = Path("/etc/dax-soak/soak.toml")
UNITS: Final = Path("/etc/systemd/system")
SOAK: Final = "dax-soak.service"
EXPORTER: Final = "dax-soak-exporter.service"
CLONE_NEWNS, CLONE_NEWPID = 0x20000, 0x20000000  # include/uapi/linux/sched.h
MS_REC_PRIVATE: Final = 0x44000
# What a machine has that a guest made for a soak lacks.
MACHINE: Final = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    "/etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\n",
    "/etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    # The program is where Python finds it without being told.
    "/usr/lib/python3/dist-packages/dax-soak.pth": f"{PROGRAM}\n",
}
# What brings up a machine, which this one is already: under emulation it takes half a minute.
MASKED: Final = (
    *(
        f"systemd-{name}.service"
        for name in (
            "firstboot",
            "hwdb-update",
            "journal-catalog-update",
            "journal-flush",
            "machine-id-commit",
            "modules-load",
            "pstore",
            "random-seed",
            "remount-fs",
            "sysctl",
            "sysusers",
            "tmpfiles-setup",
            "tmpfiles-setup-dev",
            "update-done",
            "update-utmp",
        )
    ),
    *(f"modprobe@{name}.service" for name in ("configfs", "dm_mod", "drm", "efi_pstore", "fuse", "loop")),
    *(
        f"{name}.mount"
        for name in (
            "dev-hugepages",
            "dev-mqueue",
            "sys-fs-fuse-connections",
            "sys-kernel-config",
            "sys-kernel-debug",
            "sys-kernel-tracing",
        )
    ),
    "kmod-static-nodes.service",
    "ldconfig.service",
    "systemd-tmpfiles-clean.timer",
)
# As the units are but for the waiting. A soak waits for its exporter to be replaced, however slow the
# machine is, so its watchdog is shortened only after that: to twice the time between samples and more.
QUICKER: Final = {
    SOAK: "[Service]\nRestartSec=1s\nTimeoutAbortSec=5s\n",
    EXPORTER: "[Service]\nRestartSec=1s\nWatchdogSec=10s\n",
}
# Whether the supervisor's watchdog is tried as well: 'make soak-long' changes this line.
THOROUGH: Final = False
# To ask the manager takes a process.
ASK_SECONDS: Final = 2.0
QUICKER_WATCHDOG: Final = "[Service]\nWatchdogSec=30s\n"


class Manager:
    """A service manager that was started here, and commands that are run where it is."""

    def __init__(self) -> None:
        checked(LIBC.unshare(CLONE_NEWPID), "unshare")
        self._pid = os.fork()
        if self._pid == 0:
            checked(LIBC.unshare(CLONE_NEWNS), "unshare")
            checked(LIBC.mount(b"none", b"/", None, MS_REC_PRIVATE, None), "mount")
            checked(LIBC.mount(b"proc", b"/proc", b"proc", 0, None), "mount /proc")
            console = os.open("/dev/console", os.O_RDWR)
            for descriptor in range(3):
                os.dup2(console, descriptor)
            os.execve(  # noqa: S606 - it becomes the first process
                "/usr/lib/systemd/systemd",
                ["systemd", "--log-level=notice", "--log-target=console", "--unit=basic.target"],
                {"PATH": "/usr/sbin:/usr/bin"},
            )

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words,
            check=False,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            env={**os.environ, "PYTHONPATH": str(PROGRAM)},
            # This process has no threads, and another interpreter would take a second to start.
            preexec_fn=self._enter,
        )

    def _enter(self) -> None:
        """Be where the manager is: a process enters a PID namespace by its children alone."""
        for kind in ("pid", "mnt"):
            namespace = os.open(f"/proc/{self._pid}/ns/{kind}", os.O_RDONLY)
            checked(LIBC.setns(namespace, 0), f"setns {kind}")
            os.close(namespace)
        child = os.fork()
        if child:
            os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)

    def must(self, *words: str) -> str:
        done = self.run(*words)
        if done.returncode:
            sys.exit(f"{' '.join(words)}: {done.stdout}{done.stderr}\n{self.status()}")
        return done.stdout

    def show(self, unit: str, *names: str) -> dict[str, str]:
        lines = self.must("systemctl", "show", unit, f"--property={','.join(names)}").splitlines()
        return dict(line.split("=", 1) for line in lines)

    def status(self) -> str:
        return self.run("systemctl", "status", "--no-pager", "--full", SOAK, EXPORTER).stdout

    def kill(self, unit: str, number: signal.Signals) -> None:
        self.must("systemctl", "kill", "--kill-whom=main", f"--signal={number.name}", unit)

    def restarts(self, unit: str) -> int:
        return int(self.show(unit, "NRestarts")["NRestarts"])


class Service(Newest):
    """The newest run, which a service manager has started."""

    def __init__(self, manager: Manager) -> None:
        super().__init__()
        self._manager = manager
        self._checked = 0.0

    def trouble(self) -> str | None:
        if time.monotonic() < self._checked + ASK_SECONDS * 2:
            return None
        self._checked = time.monotonic()
        state = self._manager.show(SOAK, "ActiveState")["ActiveState"]
        return self._manager.status() if state == "failed" else None

    def told(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait until the manager says what is waited for."""
        self.until(what, condition, poll_seconds=ASK_SECONDS)


def change(unit: str, name: str, text: str) -> None:
    place = UNITS / f"{unit}.d" / f"{name}.conf"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


def prepared(manager: Manager, _: Service) -> dict[str, Any]:
    """Do as `install` and the README say."""
    seen: dict[str, Any] = {}
    program = (sys.executable, "-m", "soak.cli")
    seen["install"] = manager.must(*program, "install")
    for unit, text in QUICKER.items():
        change(unit, "quicker", text)
    manager.must("systemd-sysusers", "/etc/sysusers.d/dax-soak.conf")
    manager.must("systemd-tmpfiles", "--create", "/etc/tmpfiles.d/dax-soak.conf")
    manager.must("systemctl", "daemon-reload")
    return seen


def started(manager: Manager, run: Service) -> dict[str, Any]:
    # What the workers do is none of the manager's business: mappers are quick to cover it.
    configure(CONFIG, "60m", rate=10, trials=0, holders=0, invalidators=0)
    manager.must("systemctl", "enable", "--now", SOAK, EXPORTER)
    told = len(run.events("workers.started"))
    run.soaks()
    (pid,) = exporters()
    return {
        # READY=1 comes when the workers are at work, and not before.
        "workers": told,
        "soak": manager.show(SOAK, "ActiveState", "SubState", "StatusText", "Type"),
        "exporter": manager.show(EXPORTER, "ActiveState", "SubState"),
        "uid": Path(f"/proc/{pid}").stat().st_uid,
        "active": "dax_soak_run_active 1.0" in metrics(),
        "bound": bound(),
    }


def killed(manager: Manager, run: Service) -> dict[str, Any]:
    if THOROUGH:
        # The next start heeds it.
        change(SOAK, "watchdog", QUICKER_WATCHDOG)
        manager.must("systemctl", "daemon-reload")
    manager.kill(SOAK, signal.SIGKILL)
    run.soaks(2)
    return {
        "restarts": manager.restarts(SOAK),
        "resumed": len(run.events("run.resumed")),
        "active": "dax_soak_run_active 1.0" in metrics(),
    }


def exporter_stands_still(manager: Manager, run: Service) -> dict[str, Any]:
    before = manager.restarts(SOAK)
    manager.kill(EXPORTER, signal.SIGSTOP)
    run.told("another exporter", lambda: manager.restarts(EXPORTER) == 1)
    run.told("its service", lambda: manager.show(EXPORTER, "SubState")["SubState"] == "running")
    return {"soak": manager.restarts(SOAK) - before, "active": "dax_soak_run_active 1.0" in metrics()}


def supervisor_stands_still(manager: Manager, run: Service) -> dict[str, Any]:
    before, resumed = manager.restarts(SOAK), len(run.events("run.resumed"))
    # A start that is under way has no watchdog yet.
    run.told("it runs", lambda: manager.show(SOAK, "SubState")["SubState"] == "running")
    manager.kill(SOAK, signal.SIGSTOP)
    run.told("another start", lambda: manager.restarts(SOAK) > before)
    run.soaks(len(run.events("workers.started")) + 1)
    return {
        "restarts": manager.restarts(SOAK) - before,
        "resumed": len(run.events("run.resumed")) - resumed,
    }


def stopped(manager: Manager, run: Service) -> dict[str, Any]:
    run.until("all that a pass needs", lambda: not run.uncovered())
    fed = manager.show(SOAK, "WatchdogTimestampMonotonic")
    run.told("food", lambda: manager.show(SOAK, "WatchdogTimestampMonotonic") != fed)
    manager.must("systemctl", "stop", SOAK)
    said = metrics()
    serving = exporters()
    manager.must("systemctl", "stop", EXPORTER)
    return {
        "soak": manager.show(SOAK, "ActiveState", "Result", "ExecMainStatus"),
        "events": [event["event"] for event in run.events()][-20:],
        "verdict": run.verdict(),
        "over": "dax_soak_run_active 0.0" in said,
        "exporters": len(serving),
        "left": left(),
    }


def mistaken(manager: Manager, _: Service) -> dict[str, Any]:
    CONFIG.write_text('[run]\nduration = "soon"\n')
    done = manager.run("systemctl", "start", SOAK)
    time.sleep(2.0)  # longer than a restart would wait
    return {
        "started": done.returncode,
        "soak": manager.show(SOAK, "ActiveState", "Result", "ExecMainStatus", "NRestarts"),
        "status": manager.status(),
    }


def removed(manager: Manager, _: Service) -> dict[str, Any]:
    program = (sys.executable, "-m", "soak.cli", "install", "--uninstall")
    refused = manager.run(*program)
    manager.must("systemctl", "disable", "--now", SOAK, EXPORTER)
    done = manager.must(*program)
    manager.must("systemctl", "daemon-reload")
    return {
        "refused": refused.stderr,
        "done": done,
        "left": [path.name for path in UNITS.glob("dax-soak*.service")],
    }


def main() -> None:
    listen_on_loopback()
    for place, text in MACHINE.items():
        path = Path(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    UNITS.mkdir(parents=True, exist_ok=True)
    for name in MASKED:
        (UNITS / name).symlink_to("/dev/null")
    step("systemd comes up")
    manager = Manager()
    deadline = time.monotonic() + DEADLINE
    while manager.run("systemctl", "is-system-running").stdout.strip() not in {"running", "degraded"}:
        if time.monotonic() > deadline:
            sys.exit("systemd does not come up")
        time.sleep(0.5)
    run = Service(manager)
    scenes = (
        prepared,
        started,
        exporter_stands_still,
        killed,
        *([supervisor_stands_still] if THOROUGH else ()),
        stopped,
        mistaken,
        removed,
    )
    play({scene.__name__: partial(scene, manager, run) for scene in scenes})


main()
