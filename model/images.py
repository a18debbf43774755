"""`python -m model.images FOLDER` looks at your own labelled images and says what a sweep can use of them."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from model.config import ImagesConfig, TrialConfig
from model.config.from_file import read_config
from model.data import own_images
from model.data.catalog import BAD_IMAGES
from model.system.files import reason
from model.system.interruption import interruptible
from model.system.streams import forgiving_streams


@forgiving_streams()
@interruptible
def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table and returns 0, or 2 if nothing can be trained on these images. Lists those that can't be used in
    bad_images.csv, in the working directory or, if that can't be written, in a temporary folder."""
    parser = argparse.ArgumentParser(prog="python -m model.images", description="Look at your own labelled images.")
    parser.add_argument("images", metavar="FOLDER", help="a folder of images, or a table of file names and texts")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML whose images: section to use")
    options = parser.parse_args(arguments)
    place = "." if os.access(".", os.W_OK) else tempfile.mkdtemp(prefix="crnn-sweep-")
    bad_images = Path(place, BAD_IMAGES)
    try:
        section = ImagesConfig(path=options.images)
        if options.config is not None and (found := read_config(options.config).images) is not None:
            section = found.model_copy(update={"path": options.images})
        config = TrialConfig(images=section)
        with tempfile.TemporaryDirectory(prefix="crnn-sweep-look-") as folder:
            workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            facts = own_images.Look(config, Path(folder), workers, _show, bad_images=bad_images, keep=False).facts()
    except own_images.Unusable as error:
        print("\n".join(error.facts.table()))
        print(error, file=sys.stderr)
        return 2
    except ValidationError as error:  # of the path alone: a config has been checked when it was read
        print(f"FOLDER {error.errors()[0]['ctx']['error']}", file=sys.stderr)
        return 2
    except ValueError as error:  # the message names the key of the config
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename or options.images}: {reason(error)}", file=sys.stderr)
        return 2
    print("\n".join(facts.table()))
    if facts.reasons or facts.put_aside:
        print(f"all that can't be used are in {bad_images}")
    return 0


def _show(done: int, total: int) -> None:
    if sys.stderr.isatty():
        end = "\r" if done < total else "\r\033[K"
        print(f"{done:,} of {total:,} images", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
