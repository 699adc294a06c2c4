# SPDX-License-Identifier: GPL-2.0-only
"""A journal on a real file system that gets full and has space again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.boots.harness.script import run_script
from tests.journal import full_disk
from tests.journal.test_backlog import check_scenario

pytestmark = pytest.mark.lab


@pytest.mark.parametrize("filesystem", ["ext4", pytest.param("xfs", marks=pytest.mark.long)])
def test_the_reserve_of_a_real_file_system(tmp_path: Path, filesystem: str) -> None:
    """The file systems of /mnt/dax are those of run directories, too, DAX or not."""
    script = Path(full_disk.__file__).read_text().replace("sys.argv[1]", '"/mnt/dax/run"')
    making = 'if __name__ == "__main__":\n    Path("/mnt/dax/run").mkdir()'
    script = script.replace('if __name__ == "__main__":', making)
    done = run_script(tmp_path, script, "--filesystem", filesystem)
    assert done.code == 0, done.stderr
    check_scenario(json.loads(done.stdout.splitlines()[-1]))
