# SPDX-License-Identifier: GPL-2.0-only
"""Why a guest ended or did not: its kernel's fault, the harness's, or as it should be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from soak.lab.host.boot_error import BootError
from soak.lab.host.console import EVIDENCE_LINES, SHOWN_LINES, console_tail
from soak.lab.host.vm import signal_name
from soak.verdict import lost_machine_event

if TYPE_CHECKING:
    from pathlib import Path

    from soak.lab.host.ending import Ending
    from soak.lab.host.guest_state import GuestState
    from soak.lab.host.record import RunRecord
    from soak.lab.host.vm import VirtualMachine


class EndJudge:
    """Journals how the guest ended, with the end of its console."""

    def __init__(
        self, kernel: str, console: Path, guest: GuestState, record: RunRecord, ending: Ending
    ) -> None:
        """`kernel` is a name for messages; `console` is the file of the console."""
        self._kernel = kernel
        self._console = console
        self._guest = guest
        self._record = record
        self._ending = ending

    def boot_failed(self, how: str, *, crashed: bool = False) -> BootError:
        """Return the error for a guest that did not come up; `how` goes on from "The guest"."""
        shown = "\n".join(console_tail(self._console, SHOWN_LINES))
        return BootError(
            f"The guest with kernel {self._kernel} {how}. Its console ended:\n{shown}", crashed=crashed
        )

    def abandon(self, summary: str) -> None:
        """Journal a failure of the harness, and terminate the guest without judging its end."""
        self._record.harness_failed(summary)
        self._ending.abandoned = True

    def lose(self, summary: str) -> None:
        """Journal a lost machine; after `run.ended` it is a failure of the harness."""
        if self._guest.over:
            self.abandon(f"{summary}, after its run had ended")
            return
        self._guest.lost = True
        evidence = {"console": console_tail(self._console, EVIDENCE_LINES)}
        self._record.machine_lost(lost_machine_event(summary, evidence))

    async def judge(self, vm: VirtualMachine) -> None:
        """Judge why the machine ended, where that was not as it should be.

        Raises:
            BootError: the guest did not come up.
        """
        guest = self._guest
        if guest.failure is not None:
            raise self.boot_failed(guest.failure)
        if guest.lost or self._ending.at_once or not vm.ended:
            return
        status = await vm.wait()
        if status < 0:
            self._record.harness_failed(f"QEMU was ended by {signal_name(status)}")
        elif vm.shutdown_reason == "host-signal":
            self._record.harness_failed("QEMU was ended by a signal from outside")
        elif guest.exit_code is None:
            if not guest.ready:
                raise self.boot_failed("ended before it was ready", crashed=True)
            self.lose("the guest's kernel panicked or reset the machine")
        elif guest.exit_code != 0:
            self._judge_exit(guest.exit_code)

    def _judge_exit(self, code: int) -> None:
        if not self._guest.soaking:
            raise self.boot_failed("could not start the soak")
        how = f"by {signal_name(code)}" if code < 0 else f"with exit code {code}"
        self._record.harness_failed(f"the supervisor in the guest ended {how}")
