import subprocess
import sys

FAULTS = """
import resource, sys, torch
from model.memory import keep_freed_blocks

torch.set_num_threads(1)
if sys.argv[1] == "kept":
    keep_freed_blocks()
for round in range(20):
    if round == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(1_000_000) for _ in range(8)]  # 4 MB each
    del tensors
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    command = [sys.executable, "-c", FAULTS, how]
    environment = {"THP_MEM_ALLOC_ENABLE": "0", "PATH": ""}
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


def test_what_a_step_frees_is_there_for_the_next_without_a_page_fault() -> None:
    assert faults("kept") < faults("given back") / 20
