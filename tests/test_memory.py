import gc
import subprocess
import sys

import pytest

from model.system.malloc import collector_paused

LEFT = """
import sys, psutil, torch
from model.system.malloc import keep_freed_blocks

torch.set_num_threads(1)
if sys.argv[1] == "kept":
    keep_freed_blocks()
torch.ones(1)
before = psutil.Process().memory_info().vms
count = int(sys.argv[2]) // 4
tensors = [torch.ones(count) for _ in range(8)]
del tensors
print((psutil.Process().memory_info().vms - before) / 4 / count)
"""


def left(how: str, size: int) -> float:
    """How many of a step's eight blocks of so many bytes the process still holds when it has freed them."""
    command = [sys.executable, "-c", LEFT, how, str(size)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.parametrize("size", [4_000_000, 48_000_000])
def test_what_a_step_frees_stays_with_the_process_for_the_next(size: int) -> None:
    assert left("given back", size) < 1
    assert left("kept", size) > 7


def test_the_collector_stands_still_for_an_import_and_is_left_as_it_was() -> None:
    with collector_paused():
        assert not gc.isenabled()
        with collector_paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
