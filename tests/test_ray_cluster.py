import subprocess
import sys

import pytest

STUCK = """
import os, threading
from sweep.ray_cluster import RayCluster, ray

ray.shutdown = threading.Event().wait
cluster = RayCluster(1)
cluster.wait()
cluster.close()
print("closed", flush=True)
os._exit(0)
"""


@pytest.mark.slow
def test_a_ray_that_does_not_end_does_not_keep_the_sweep_from_ending() -> None:
    command = [sys.executable, "-c", STUCK]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    assert done.stdout == "closed\n"
