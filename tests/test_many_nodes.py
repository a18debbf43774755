import json
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.processes import PATIENCE


@pytest.mark.cluster
def test_each_of_ten_nodes_runs_a_trial_and_every_report_is_answered() -> None:
    command = [sys.executable, "-m", "tests.many_nodes", "10", "10", "20"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE * 200, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["completed"], found["reports"]) == (10, 10 * 20)
