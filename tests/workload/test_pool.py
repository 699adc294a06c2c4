# SPDX-License-Identifier: GPL-2.0-only
"""The pool with real processes whose operations do nothing: starting, resting, dying, ending."""

from __future__ import annotations

import errno
import os
import resource
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from soak.ledger.recorder import in_flight
from soak.ledger.schema import SUPERVISOR
from soak.machine.changes import limit_worker
from soak.model.vocabulary import Operation, WorkerState
from soak.process.helper import in_helper
from soak.process.limits import private_bytes
from soak.workload.loop import outcome_columns
from soak.workload.pool import WorkerPool, WorkerProcess
from soak.workload.worker import FREE, WorkerLimits
from tests.support.idle_operators import Idle, Stuck
from tests.support.soak import make_ledger, workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from soak.ledger.writer import BlockWriter
    from soak.workload.choices import Choice
    from soak.workload.loop import Barrier
    from soak.workload.pool import Death
    from soak.workload.worker import Operator

RELEASE = (6, 1)
DEADLINE_SECONDS = 30.0


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
def hire(tmp_path: Path) -> Iterator[Callable[..., WorkerPool]]:
    ledger = make_ledger(tmp_path / "ledger")
    pools: list[WorkerPool] = []

    def make(kind: Callable[[BlockWriter], Operator] = Idle, limits: WorkerLimits = FREE) -> WorkerPool:
        processes = [
            WorkerProcess(plan, ledger.block(plan.name), outcome_columns(plan.cells, RELEASE), kind)
            for plan in workers()
        ]
        supervisor = ledger.block(SUPERVISOR)
        words = (supervisor.view("pause"), supervisor.view("uncertain"))
        pools.append(WorkerPool(processes, *words, limits=limits))
        pools[-1].start()
        return pools[-1]

    yield make
    for pool in pools:
        pool.stop(2.0, nothing)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)


def nothing() -> None:
    pass


def working(pool: WorkerPool) -> bool:
    return all(worker.block.get("ended") > 0 for worker in pool.workers)


def deaths_of(pool: WorkerPool) -> list[Death]:
    found: list[Death] = []

    def reaped() -> bool:
        found.extend(pool.reap())
        return bool(found)

    wait_for(reaped)
    return found


def test_workers_pause_between_operations_and_resume(hire: Callable[..., WorkerPool]) -> None:
    pool = hire()
    wait_for(lambda: working(pool))
    assert pool.pause(DEADLINE_SECONDS, nothing) == []
    resting = [worker.block.get("begun") for worker in pool.workers]
    assert [worker.block.get("ended") for worker in pool.workers] == resting
    time.sleep(0.1)
    assert [worker.block.get("begun") for worker in pool.workers] == resting
    pool.resume()
    wait_for(lambda: all(m.block.get("begun") > n for m, n in zip(pool.workers, resting, strict=True)))


def test_pause_returns_workers_that_do_not_rest(hire: Callable[..., WorkerPool]) -> None:
    pool = hire(Stuck)
    wait_for(lambda: all(worker.block.get("begun") == 1 for worker in pool.workers))
    called: list[int] = []
    late = pool.pause(0.2, lambda: called.append(1))
    assert late == [worker.plan.name for worker in pool.workers]
    assert called


def test_a_killed_worker_is_reported_and_replaced(hire: Callable[..., WorkerPool]) -> None:
    pool = hire()
    wait_for(lambda: working(pool))
    victim = pool.workers[0]
    before, pid = victim.block.get("incarnation"), victim.pid
    os.kill(pid, signal.SIGKILL)
    wait_for(pool.lost_one)
    (death,) = deaths_of(pool)
    assert (death.worker, death.signal_number, death.gave_up) == (victim.plan.name, 9, False)
    assert not pool.lost_one()
    wait_for(lambda: victim.block.get("pid") not in {0, pid})
    assert victim.block.get("incarnation") == before + 1


def test_a_pause_ignores_dead_workers(hire: Callable[..., WorkerPool]) -> None:
    pool = hire()
    wait_for(lambda: working(pool))
    os.kill(pool.workers[0].pid, signal.SIGKILL)
    wait_for(pool.lost_one)
    assert pool.pause(DEADLINE_SECONDS, nothing) == []
    assert pool.lost_one()


def test_pages_of_a_killed_worker_are_counted_unmapped(hire: Callable[..., WorkerPool]) -> None:
    pool = hire(Stuck)
    worker = pool.workers[0]
    wait_for(lambda: worker.block.get("begun") == 1)
    worker.block.set("pages_mapped", 7, 0)
    os.kill(worker.pid, signal.SIGKILL)
    (death,) = deaths_of(pool)
    assert death.in_flight is not None
    assert worker.block.get("pages_unmapped", 0) == 7
    first = next(worker.plan.choices(0))
    assert first.operation is Operation.MAP
    uncertain = pool.uncertain
    assert uncertain[first.region] == sum(uncertain) == first.length // 4096


def test_pages_stay_stranded_until_an_abandoned_process_ends(hire: Callable[..., WorkerPool]) -> None:
    pool = hire()
    assert pool.pause(DEADLINE_SECONDS, nothing) == []
    worker = pool.workers[0]
    worker.block.set("pages_mapped", 7, 0)
    pid = worker.pid
    pool.abandon(worker)
    assert (pool.stranded(0), pool.stranded(1)) == (7, 0)
    assert worker.block.get("pages_unmapped", 0) == 7
    assert list(pool.reap()) == []
    assert pool.stranded(0) == 7
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: list(pool.reap()) == [] and pool.stranded(0) == 0)


def test_a_hung_call_strands_its_pages(hire: Callable[..., WorkerPool]) -> None:
    pool = hire(Stuck)
    wait_for(lambda: all(in_flight(worker.block.get, worker.block.view) for worker in pool.workers))
    flights = [
        flight for worker in pool.workers if (flight := in_flight(worker.block.get, worker.block.view))
    ]
    pages = sum(flight["length"] // 4096 for flight in flights if flight["region"] == 0)
    assert pool.stranded(0) == pages > 0


def test_a_worker_that_never_starts_is_given_up(hire: Callable[..., WorkerPool]) -> None:
    pool = hire(Broken)
    told: list[Death] = []

    def all_given_up() -> bool:
        told.extend(pool.reap())
        return sum(death.gave_up for death in told) == len(pool.workers)

    wait_for(all_given_up)
    assert not any(worker.running for worker in pool.workers)
    assert {death.exit_code for death in told} == {70}


def test_stop_ends_all_workers_cleanly(hire: Callable[..., WorkerPool]) -> None:
    pool = hire()
    wait_for(lambda: working(pool))
    assert pool.stop(DEADLINE_SECONDS, nothing) == []
    assert not any(worker.running for worker in pool.workers)
    for worker in pool.workers:
        assert worker.block.block.fields["state"].values[worker.block.get("state")] == "ended"
        assert worker.block.get("begun") == worker.block.get("ended")


def test_stop_kills_stuck_workers(hire: Callable[..., WorkerPool]) -> None:
    pool = hire(Stuck)
    wait_for(lambda: all(worker.block.get("begun") == 1 for worker in pool.workers))
    assert pool.stop(0.5, nothing) == sorted(worker.plan.name for worker in pool.workers)
    states = {
        worker.block.block.fields["state"].values[worker.block.get("state")] for worker in pool.workers
    }
    assert states == {WorkerState.DEAD}


def test_a_pause_does_not_wait_for_the_rate(hire: Callable[..., WorkerPool]) -> None:
    pool = hire(limits=WorkerLimits(rate=0.01))
    wait_for(lambda: all(worker.block.get("ended") == 1 for worker in pool.workers))
    # The next operation is a hundred seconds away.
    assert pool.pause(DEADLINE_SECONDS, nothing) == []
    pool.resume()
    wait_for(lambda: all(worker.block.get("acknowledged") == 0 for worker in pool.workers))
    assert [worker.block.get("begun") for worker in pool.workers] == [1] * len(pool.workers)
    assert pool.stop(DEADLINE_SECONDS, nothing) == []


def test_the_rate_limits_the_leader_of_a_pair(hire: Callable[..., WorkerPool]) -> None:
    pool = hire(Leading, limits=WorkerLimits(rate=0.01))
    wait_for(lambda: all(worker.block.get("ended") == 1 for worker in pool.workers))
    assert pool.stop(DEADLINE_SECONDS, nothing) == []
    assert [worker.block.get("begun") for worker in pool.workers] == [1] * len(pool.workers)


def test_the_rate_does_not_limit_the_follower(hire: Callable[..., WorkerPool]) -> None:
    pool = hire(Following, limits=WorkerLimits(rate=0.01))
    wait_for(lambda: all(worker.block.get("ended") > 5 for worker in pool.workers))


def test_workers_have_memory_limit_and_oom_score(hire: Callable[..., WorkerPool]) -> None:
    limit = private_bytes() + (256 << 20)
    pool = hire(limits=WorkerLimits(enter=lambda: limit_worker(limit)))
    wait_for(lambda: working(pool))
    for worker in pool.workers:
        process = Path(f"/proc/{worker.pid}")
        limits = (process / "limits").read_text()
        (line,) = [line for line in limits.splitlines() if line.startswith("Max data size")]
        assert line.split()[3] == str(limit)
        assert (process / "oom_score_adj").read_text() == "1000\n"


def test_a_productive_worker_is_always_replaced(hire: Callable[..., WorkerPool]) -> None:
    pool = hire()
    for _ in range(8):
        wait_for(lambda: working(pool))
        before = [worker.block.get("begun") for worker in pool.workers]
        wait_for(
            lambda: all(
                worker.block.get("begun") > count
                for worker, count in zip(pool.workers, before, strict=True)  # noqa: B023 - at once
            )
        )
        os.kill(pool.workers[0].pid, signal.SIGKILL)
        (death,) = deaths_of(pool)
        assert not death.gave_up


def test_a_failed_fork_is_retried(hire: Callable[..., WorkerPool]) -> None:
    """A machine that is short of processes ends no soak (fork(2), EAGAIN)."""

    def work() -> list[Any]:
        if os.geteuid() == 0:
            os.setuid(65534)  # root has no such limit
        pool = hire()
        soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
        worker = pool.workers[0]
        incarnation = worker.block.get("incarnation")
        resource.setrlimit(resource.RLIMIT_NPROC, (1, hard))
        pool.kill(worker)
        deaths: list[str] = []

        def reap() -> None:
            deaths.extend(death.worker for death in pool.reap())

        def died() -> bool:
            reap()
            return deaths != []

        wait_for(died)
        reap()
        waits = [pool.unborn, worker.running, pool.pause(DEADLINE_SECONDS, reap)]
        pool.resume()
        resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))
        reap()
        born = [pool.unborn, worker.running, worker.block.get("incarnation") - incarnation]
        pool.stop(2.0, nothing)
        return [deaths, waits, born]

    name = workers()[0].name
    deaths, waits, born = in_helper(work, 2 * DEADLINE_SECONDS)
    assert deaths == [name]
    assert waits == [{name: os.strerror(errno.EAGAIN)}, False, []]
    assert born == [{}, True, 1]
