"""`python -m model.predict CHECKPOINT IMAGE|FOLDER…` prints file, text and confidence, tab-separated."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from model.system.files import reason
from model.system.interruption import interruptible
from model.system.streams import forgiving_streams


@forgiving_streams()
@interruptible
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m model.predict", description="Read captcha images.")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a sweep's best.pt")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE|FOLDER")
    options = parser.parse_args(arguments)
    # Imported here: it takes seconds, in which Ctrl-C may come.
    import torch

    from model.reading.recognizer import Recognizer, image_files

    failures: list[str] = []

    def failed(sentence: str) -> None:
        failures.append(sentence)
        print(sentence, file=sys.stderr)

    torch.set_num_threads(1)  # more don't speed up so small a network, and wait for each other on a busy machine
    try:
        recognizer = Recognizer.from_checkpoint(options.checkpoint)
    except OSError as error:
        failed(f"{options.checkpoint}: {reason(error)}")
        return 2
    except ValueError as error:
        failed(str(error))
        return 2
    files = list(image_files(options.images, failed))
    try:
        for file, text, confidence in recognizer.read_files(files, failed):
            print(f"{file}\t{text}\t{confidence:.4f}")
        sys.stdout.flush()
    except BrokenPipeError:  # e.g. `| head`; otherwise Python would flush at exit, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 2 if not files else 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
