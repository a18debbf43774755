import subprocess
import sys

LEFT = """
import gc, sys, psutil, torch
from model.memory import keep_freed_blocks

torch.set_num_threads(1)
if sys.argv[1] == "kept":
    keep_freed_blocks()
torch.ones(1)
before = psutil.Process().memory_info().vms
tensors = [torch.ones(1_000_000) for _ in range(8)]  # 4 MB each
del tensors
print((psutil.Process().memory_info().vms - before) / 4_000_000)
"""


def left(how: str) -> float:
    """How many of a step's eight blocks the process still holds when it has freed them."""
    command = [sys.executable, "-c", LEFT, how]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_what_a_step_frees_stays_with_the_process_for_the_next() -> None:
    assert left("given back") < 1
    assert left("kept") > 7
