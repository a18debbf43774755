"""Ctrl-C and SIGTERM, wherever they fall."""

import subprocess
import sys

FALLS_INTO_A_CALLBACK = """
import signal, sys, time, weakref
from sweep import interrupts

class Anything:
    pass

interrupts.listen()
anything = Anything()
reference = weakref.ref(anything, lambda _: signal.raise_signal(int(sys.argv[1])))
try:
    del anything  # Python drops what is raised from here
    time.sleep(20)
    print("lost")
except KeyboardInterrupt:
    print("came")
"""


def test_an_interrupt_that_python_would_drop_comes_all_the_same() -> None:
    for number in ("2", "15"):
        done = subprocess.run(
            [sys.executable, "-c", FALLS_INTO_A_CALLBACK, number], capture_output=True, text=True, check=True
        )
        assert (done.stdout, done.stderr) == ("came\n", "")
