"""The crew with real processes whose operations do nothing: starting, resting, dying, ending."""

from __future__ import annotations

import errno
import os
import resource
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from soak.ledger.schema import SUPERVISOR
from soak.machine.changes import be_expendable
from soak.model.vocabulary import Operation, WorkerState
from soak.process.helper import in_helper
from soak.process.limits import private_bytes
from soak.workload.pool import Crew, Member, in_flight
from soak.workload.worker import FREE, Terms, outcome_columns
from tests.soak_support import make_ledger, workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from soak.ledger.memory import BlockWriter
    from soak.workload.choices import Choice
    from soak.workload.pool import Death
    from soak.workload.worker import Barrier, Operator

RELEASE = (6, 1)
DEADLINE_SECONDS = 30.0


class Idle:
    """An operator that takes its time and does nothing."""

    def __init__(self, block: BlockWriter) -> None:
        self._block = block

    def calls(self) -> Mapping[Operation, Callable[[Choice], int]]:
        return dict.fromkeys(Operation, self._do)

    def rest(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _do(self, _choice: Choice) -> int:
        time.sleep(0.0005)
        return 0


class Stuck(Idle):
    """An operator whose first call never ends by itself."""

    def _do(self, _choice: Choice) -> int:
        while True:
            time.sleep(60)


class Broken(Idle):
    """An operator that cannot be made."""

    def __init__(self, _block: BlockWriter) -> None:
        raise RuntimeError("this worker cannot start")


class Leading(Idle):
    """An operator that another one takes its time from."""

    leads = True

    def paced(self, _barrier: Barrier) -> Iterator[Choice]:
        (plan,) = (plan for plan in workers() if plan.name == self._block.block.name)
        return plan.choices(0)


class Following(Leading):
    """An operator that takes its time from another one."""

    leads = False


@pytest.fixture
def hire(tmp_path: Path) -> Iterator[Callable[..., Crew]]:
    ledger = make_ledger(tmp_path / "ledger")
    crews: list[Crew] = []

    def make(kind: Callable[[BlockWriter], Operator] = Idle, terms: Terms = FREE) -> Crew:
        members = [
            Member(plan, ledger.block(plan.name), outcome_columns(plan.cells, RELEASE), kind)
            for plan in workers()
        ]
        supervisor = ledger.block(SUPERVISOR)
        words = (supervisor.view("pause"), supervisor.view("uncertain"))
        crews.append(Crew(members, *words, terms=terms))
        crews[-1].start()
        return crews[-1]

    yield make
    for crew in crews:
        crew.stop(2.0, nothing)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)


def nothing() -> None:
    pass


def working(crew: Crew) -> bool:
    return all(member.block.get("ended") > 0 for member in crew.members)


def deaths_of(crew: Crew) -> list[Death]:
    found: list[Death] = []

    def reaped() -> bool:
        found.extend(crew.reap())
        return bool(found)

    wait_for(reaped)
    return found


def test_workers_rest_between_operations_and_go_on(hire: Callable[..., Crew]) -> None:
    crew = hire()
    wait_for(lambda: working(crew))
    assert crew.pause(DEADLINE_SECONDS, nothing) == []
    resting = [member.block.get("begun") for member in crew.members]
    assert [member.block.get("ended") for member in crew.members] == resting
    time.sleep(0.1)
    assert [member.block.get("begun") for member in crew.members] == resting
    crew.resume()
    wait_for(
        lambda: all(m.block.get("begun") > n for m, n in zip(crew.members, resting, strict=True))
    )


def test_a_worker_that_does_not_rest_is_named(hire: Callable[..., Crew]) -> None:
    crew = hire(Stuck)
    wait_for(lambda: all(member.block.get("begun") == 1 for member in crew.members))
    called: list[int] = []
    late = crew.pause(0.2, lambda: called.append(1))
    assert late == [member.plan.name for member in crew.members]
    assert called


def test_a_killed_worker_is_told_and_replaced(hire: Callable[..., Crew]) -> None:
    crew = hire()
    wait_for(lambda: working(crew))
    victim = crew.members[0]
    before, pid = victim.block.get("incarnation"), victim.pid
    os.kill(pid, signal.SIGKILL)
    wait_for(crew.lost_one)
    (death,) = deaths_of(crew)
    assert (death.worker, death.signal_number, death.gave_up) == (victim.plan.name, 9, False)
    assert not crew.lost_one()
    wait_for(lambda: victim.block.get("pid") not in {0, pid})
    assert victim.block.get("incarnation") == before + 1


def test_a_dead_worker_does_not_hold_up_the_others_rest(hire: Callable[..., Crew]) -> None:
    crew = hire()
    wait_for(lambda: working(crew))
    os.kill(crew.members[0].pid, signal.SIGKILL)
    wait_for(crew.lost_one)
    assert crew.pause(DEADLINE_SECONDS, nothing) == []
    assert crew.lost_one()


def test_what_a_killed_worker_held_is_given_back_in_its_books(hire: Callable[..., Crew]) -> None:
    crew = hire(Stuck)
    member = crew.members[0]
    wait_for(lambda: member.block.get("begun") == 1)
    member.block.set("pages_mapped", 7, 0)
    os.kill(member.pid, signal.SIGKILL)
    (death,) = deaths_of(crew)
    assert death.in_flight is not None
    assert member.block.get("pages_unmapped", 0) == 7
    first = next(member.plan.choices(0))
    assert first.operation is Operation.MAP
    uncertain = crew.uncertain
    assert uncertain[first.region] == sum(uncertain) == first.length // 4096


def test_what_an_abandoned_worker_holds_is_stranded_until_it_ends(
    hire: Callable[..., Crew],
) -> None:
    crew = hire()
    assert crew.pause(DEADLINE_SECONDS, nothing) == []
    member = crew.members[0]
    member.block.set("pages_mapped", 7, 0)
    pid = member.pid
    crew.abandon(member)
    assert (crew.stranded(0), crew.stranded(1)) == (7, 0)
    assert member.block.get("pages_unmapped", 0) == 7
    assert list(crew.reap()) == []
    assert crew.stranded(0) == 7
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: list(crew.reap()) == [] and crew.stranded(0) == 0)


def test_a_call_that_does_not_come_back_strands_its_pages(hire: Callable[..., Crew]) -> None:
    crew = hire(Stuck)
    wait_for(lambda: all(in_flight(member.block) for member in crew.members))
    flights = [flight for member in crew.members if (flight := in_flight(member.block))]
    pages = sum(flight["length"] // 4096 for flight in flights if flight["region"] == 0)
    assert crew.stranded(0) == pages > 0


def test_one_that_dies_at_every_start_is_given_up(hire: Callable[..., Crew]) -> None:
    crew = hire(Broken)
    told: list[Death] = []

    def all_given_up() -> bool:
        told.extend(crew.reap())
        return sum(death.gave_up for death in told) == len(crew.members)

    wait_for(all_given_up)
    assert not any(member.running for member in crew.members)
    assert {death.exit_code for death in told} == {70}


def test_stop_ends_all_in_order(hire: Callable[..., Crew]) -> None:
    crew = hire()
    wait_for(lambda: working(crew))
    assert crew.stop(DEADLINE_SECONDS, nothing) == []
    assert not any(member.running for member in crew.members)
    for member in crew.members:
        assert member.block.block.fields["state"].values[member.block.get("state")] == "ended"
        assert member.block.get("begun") == member.block.get("ended")


def test_stop_kills_what_does_not_end(hire: Callable[..., Crew]) -> None:
    crew = hire(Stuck)
    wait_for(lambda: all(member.block.get("begun") == 1 for member in crew.members))
    assert crew.stop(0.5, nothing) == sorted(member.plan.name for member in crew.members)
    states = {
        member.block.block.fields["state"].values[member.block.get("state")]
        for member in crew.members
    }
    assert states == {WorkerState.DEAD}


def test_a_rate_holds_workers_back_and_a_pause_does_not_wait_for_it(
    hire: Callable[..., Crew],
) -> None:
    crew = hire(terms=Terms(rate=0.01))
    wait_for(lambda: all(member.block.get("ended") == 1 for member in crew.members))
    # The next operation is a hundred seconds away.
    assert crew.pause(DEADLINE_SECONDS, nothing) == []
    crew.resume()
    wait_for(lambda: all(member.block.get("acknowledged") == 0 for member in crew.members))
    assert [member.block.get("begun") for member in crew.members] == [1] * len(crew.members)
    assert crew.stop(DEADLINE_SECONDS, nothing) == []


def test_of_workers_that_wait_for_each_other_one_keeps_the_rate(
    hire: Callable[..., Crew],
) -> None:
    crew = hire(Leading, terms=Terms(rate=0.01))
    wait_for(lambda: all(member.block.get("ended") == 1 for member in crew.members))
    assert crew.stop(DEADLINE_SECONDS, nothing) == []
    assert [member.block.get("begun") for member in crew.members] == [1] * len(crew.members)


def test_of_workers_that_wait_for_each_other_one_takes_its_time_from_the_other(
    hire: Callable[..., Crew],
) -> None:
    crew = hire(Following, terms=Terms(rate=0.01))
    wait_for(lambda: all(member.block.get("ended") > 5 for member in crew.members))


def test_workers_keep_to_a_limit_of_memory_and_go_first(hire: Callable[..., Crew]) -> None:
    limit = private_bytes() + (256 << 20)
    crew = hire(terms=Terms(enter=lambda: be_expendable(limit)))
    wait_for(lambda: working(crew))
    for member in crew.members:
        process = Path(f"/proc/{member.pid}")
        limits = (process / "limits").read_text()
        (line,) = [line for line in limits.splitlines() if line.startswith("Max data size")]
        assert line.split()[3] == str(limit)
        assert (process / "oom_score_adj").read_text() == "1000\n"


def test_a_worker_that_was_at_work_is_replaced_however_often_it_is_killed(
    hire: Callable[..., Crew],
) -> None:
    crew = hire()
    for _ in range(8):
        wait_for(lambda: working(crew))
        before = [member.block.get("begun") for member in crew.members]
        wait_for(
            lambda: all(
                member.block.get("begun") > count
                for member, count in zip(crew.members, before, strict=True)  # noqa: B023 - at once
            )
        )
        os.kill(crew.members[0].pid, signal.SIGKILL)
        (death,) = deaths_of(crew)
        assert not death.gave_up


def test_a_worker_waits_until_the_machine_has_a_process_for_it(hire: Callable[..., Crew]) -> None:
    """A machine that is short of processes ends no soak (fork(2), EAGAIN)."""

    def work() -> list[Any]:
        if os.geteuid() == 0:
            os.setuid(65534)  # root has no such limit
        crew = hire()
        soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
        member = crew.members[0]
        incarnation = member.block.get("incarnation")
        resource.setrlimit(resource.RLIMIT_NPROC, (1, hard))
        crew.kill(member)
        deaths: list[str] = []

        def reap() -> None:
            deaths.extend(death.worker for death in crew.reap())

        def died() -> bool:
            reap()
            return deaths != []

        wait_for(died)
        reap()
        waits = [crew.unborn, member.running, crew.pause(DEADLINE_SECONDS, reap)]
        crew.resume()
        resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))
        reap()
        born = [crew.unborn, member.running, member.block.get("incarnation") - incarnation]
        crew.stop(2.0, nothing)
        return [deaths, waits, born]

    name = workers()[0].name
    deaths, waits, born = in_helper(work, 2 * DEADLINE_SECONDS)
    assert deaths == [name]
    assert waits == [{name: os.strerror(errno.EAGAIN)}, False, []]
    assert born == [{}, True, 1]
