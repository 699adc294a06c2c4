"""Scheduled work on a machine whose clock is set, and where summer time comes and goes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.lab_support import run_script

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.lab

# Central European time as a rule, for a guest that has no table of zones.
SCRIPT = """
    import json, os, time
    from datetime import datetime, timezone
    from pathlib import Path
    import schedule
    from soak.jobs import Jobs
    from soak.journal import FileJournal
    from soak.ledger import Ledger
    from soak.schema import soak_layout

    def jump(seconds):
        time.clock_settime(time.CLOCK_REALTIME, time.time() + seconds)

    def at(*moment):
        time.clock_settime(time.CLOCK_REALTIME, datetime(*moment, tzinfo=timezone.utc).timestamp())

    Path("/run/jobs").mkdir()
    layout = soak_layout({"regions": []}, [], [], lab=False)
    ledger = Ledger.create(Path("/run/jobs/ledger"), layout)
    block, journal = ledger.block("supervisor"), FileJournal(Path("/run/jobs/journal.jsonl"))
    os.environ["TZ"] = "CET-1CEST,M3.5.0,M10.5.0/3"
    time.tzset()

    # 3 s before each change.
    EVENTS = {
        "back": lambda: jump(-3600),
        "forward": lambda: jump(3600),
        "a day forward": lambda: jump(86400),
        "summer time begins": lambda: at(2027, 3, 28, 0, 59, 58),
        "summer time ends": lambda: at(2027, 10, 31, 0, 59, 58),
    }
    for name, event in EVENTS.items():
        jobs = Jobs(block, journal)
        plain = schedule.Scheduler()
        runs = {"mine": [], "plain": [], "hourly": [], "plain hourly": []}
        def noting(key):
            return lambda: runs[key].append(time.monotonic())
        def failing():
            runs["mine"].append(time.monotonic())
            raise OSError(5, "no luck")
        before = datetime.now().astimezone().utcoffset()
        if name.startswith("summer"):
            event()
            before = datetime.now().astimezone().utcoffset()
        jobs.every("counters", 0.5, failing)
        jobs.every("sweep", 1800, noting("hourly"))
        plain.every(1).seconds.do(noting("plain"))
        plain.every(1800).seconds.do(noting("plain hourly"))
        begun = time.monotonic()
        jumped = name.startswith("summer")
        while time.monotonic() - begun < 6:
            if not jumped and time.monotonic() - begun > 2:
                event()
                jumped = True
            jobs.run_pending()
            plain.run_pending()
            time.sleep(0.02)
        after = datetime.now().astimezone().utcoffset()
        mine = runs["mine"]
        gaps = [b - a for a, b in zip(mine, mine[1:])]
        index = block.index("jobs", "counters", "lateness_ns")
        print(json.dumps({
            "event": name,
            "offset changed": before != after,
            "runs": len(mine),
            "longest gap": max(gaps),
            "hourly": len(runs["hourly"]),
            "plain": len(runs["plain"]),
            "plain hourly": len(runs["plain hourly"]),
            "lateness": block.get("jobs", *index) / 1e9,
        }), flush=True)
"""


def test_a_clock_that_jumps_and_summer_time_do_nothing(tmp_path: Path) -> None:
    done = run_script(tmp_path, SCRIPT, seconds=200)
    assert done.returncode == 0, done.stderr + done.stdout
    told = {
        line["event"]: line
        for line in map(json.loads, filter(lambda text: text.startswith("{"), done.stdout.splitlines()))
    }  # fmt: skip
    assert len(told) == 5, done.stderr + done.stdout
    for event, line in told.items():
        # Of the 12 turns of 6 s, as many as a slow machine lets come; none is made up for.
        assert 6 <= line["runs"] <= 12, event
        assert line["longest gap"] < 3, event
        assert line["lateness"] < 3, event
        # What is due in half an hour is not done because the clock says that it has passed.
        assert line["hourly"] == 0, event
        assert line["offset changed"] == event.startswith("summer"), event
    # The control, `schedule` as it is: it stands still, and it hurries.
    assert told["back"]["plain"] <= 3
    assert told["summer time ends"]["plain"] <= 3
    for event in ("forward", "a day forward", "summer time begins"):
        assert told[event]["plain hourly"] == 1
