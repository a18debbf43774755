"""Looks at a user's own images before a sweep starts, and fits the config to them."""

import argparse
import json
import os
import re
import sys
from pathlib import Path

from rich.progress import Progress

from model.data import own_images
from model.data.catalog import BAD_IMAGES
from model.data.pool_file import SPLITS
from model.data.workers import another_main_module
from sweep.config import ConfigError, SweepConfig, derived
from sweep.machine.cpus import usable_cpus


def look_at(config: SweepConfig, pools: Path, options: argparse.Namespace) -> SweepConfig:
    """Reads and converts the images, prints what was found, and returns the config with all that follows from it.

    Raises ConfigError if the images can't be used.
    """
    images = config.images
    assert images is not None
    path = None if images.path is None else os.path.abspath(os.path.expanduser(images.path))
    absolute = images.model_copy(update={"path": path})
    config = config.model_copy(update={"images": absolute})
    given = config.data.model_fields_set
    limits = {split: config.data.count(split) for split in SPLITS if f"{split}_images" in given}
    with Progress(transient=True, disable=options.quiet or not sys.stderr.isatty()) as bar, another_main_module():
        task = bar.add_task("reading images", total=None)
        try:
            facts = own_images.Look(
                config,
                pools,
                usable_cpus(),
                lambda done, total: bar.update(task, completed=done, total=total),
                limits=limits,
                bad_images=options.output_dir / BAD_IMAGES,
            ).facts()
        except ValueError as error:
            if isinstance(error, own_images.Unusable):
                print("\n".join(error.facts.table()), file=sys.stderr)
            named = "--images" if options.images is not None else "images.path"
            raise ConfigError([re.sub(r"^images\.path\b", named, str(error))]) from None
    if not options.quiet:
        print("\n".join(facts.table()))
    chosen = derived.values(config, facts)
    if chosen and not options.quiet:
        print("chosen by the images: " + ", ".join(f"{path}={json.dumps(value)}" for path, value in chosen.items()))
    return derived.fitted(config, facts, chosen)
