"""Command line of a sweep, `python -m sweep.run`: searches hyperparameters and compares all trials in TensorBoard."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from model.system.interruption import interruptible
from model.system.streams import forgiving_streams
from sweep.config import QUICKSTART
from sweep.execution import start, storage


@forgiving_streams()
@interruptible
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a sweep and returns its exit code: 0 finished; 1 finished, but a trial failed; 2 bad input, nothing was
    started; 130 interrupted; 70 an error of this program."""
    options = _options(arguments)
    if sys.platform == "win32":
        print("crnn-sweep does not run on Windows; it runs on Linux, also in WSL", file=sys.stderr)
        return 2
    return start.run(options)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sweep.run",
        description="Search learning rate and schedule of a text recogniser; compare all trials in TensorBoard.",
    )
    add = parser.add_argument
    add("--config", type=Path, default=QUICKSTART, help="YAML (default configs/quickstart.yaml)")
    add("--images", metavar="FOLDER", help="train on these images of your own (default config own_images.yaml)")
    add("--set", action="append", default=[], metavar="PATH=VALUE", help="override a value, optimizer.lr=3e-4")
    add("--trial", metavar="PATH=VALUE,…", help="run this one trial instead of a search")
    add("--trials", type=int, metavar="N", help="as --set search.trials=N; with --resume, extends a sweep")
    to_resume = "go on with the sweep in this folder, or that of --sync-to URI; alone: start the sweep NAME, or go on"
    add("--resume", type=_folder_or_uri, nargs="?", const=True, metavar="FOLDER", help=to_resume)
    add("--retry-failed", action="store_true", help="with --resume: run the trials that failed once more")
    add("--name", help="folder of this sweep (default CONFIG-DATE-TIME)")
    add("--output-dir", type=Path, default=Path("runs"), metavar="DIR", help="where sweeps lie (default runs)")
    add("--sync-to", metavar="URI", help="copy the sweep's files there while it runs: s3://, gs://, file://, …")
    add("--storage", metavar="URI", help="the same for nodes without a shared folder: trials pass files through it")
    add("--cache-dir", type=Path, metavar="DIR", help="where rendered images lie (default: the user's cache)")
    add("--dry-run", action="store_true", help="show config, space and five sampled trials; start nothing")
    where = "the Ray cluster: local (default) starts one of its own, auto or HOST:PORT joins one that runs"
    add("--address", default="local", metavar="ADDRESS", help=where)
    add("--local", action="store_true", help="run the trials in this process, without Ray")
    add("--tensorboard", action="store_true", help="serve TensorBoard on 127.0.0.1 while the sweep runs")
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("--quiet", action="store_true", help="print the result alone")
    loudness.add_argument("--verbose", action="store_true", help="print a line for each epoch")
    return parser.parse_args(arguments)


def _folder_or_uri(text: str) -> Path | str:
    return text if storage.is_uri(text) else Path(text)


def command() -> int:
    """Entry point of the process: runs `main`, then exits without waiting for Ray's own clean-up."""
    code = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep is over: another Ctrl-C must not change the exit code
    if "ray" in sys.modules or any(thread.name == storage.THREAD for thread in threading.enumerate()):
        # Skips Ray's atexit handlers, a second to free what the kernel frees anyway; and pyarrow's, which wait for
        # minutes for a storage that does not answer.
        os._exit(code)
    return code  # --local: profilers and debuggers need a normal interpreter exit


if __name__ == "__main__":
    sys.exit(command())
