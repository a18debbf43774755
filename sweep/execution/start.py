"""From the command line to a sweep: reads the config, checks it and its folders, and starts Ray."""

import argparse
import logging
import sys
import tempfile
import traceback
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.system.malloc import collector_paused
from sweep.config import QUICKSTART, ConfigError, SweepConfig, blaming, load, parse_settings, split_at_commas
from sweep.execution import folders, interrupts
from sweep.machine.cpus import check_shares, usable_cpus
from sweep.wording import faults

if TYPE_CHECKING:
    from sweep.execution.ray_cluster import RayCluster


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line, read and checked."""

    options: argparse.Namespace
    config: SweepConfig
    origin: tuple[Path, dict[str, Any], dict[str, Any] | None]  # the config's file, --set and --trial
    pools: Path
    roots: list[Path]  # where a new sweep may lie, in order of preference


def run(options: argparse.Namespace) -> int:
    """The exit code of a sweep. What goes wrong before the sweep has its folder is answered here."""
    interrupts.listen()
    logging.raiseExceptions = False  # report a full disk once instead of once per log call
    closing = ExitStack()
    try:
        request = _read_and_check(options)
        cluster = None if options.local or options.dry_run else _start_ray(closing)
        # Torch takes seconds to import: most bad input has been answered by now, and Ray starts meanwhile.
        with collector_paused():
            from sweep.execution import sweep

        return sweep.run(request, cluster, closing)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(str(error) or "\ninterrupted", file=sys.stderr)  # RayLost has a text
        return faults.INTERRUPTED
    except BaseException as error:
        if (outside := faults.surroundings(error)) is not None:
            print(f"nothing was started: {outside}", file=sys.stderr)
            return 2
        print(f"an error of this program: {faults.one_line(error)}; {_keep_traceback()}", file=sys.stderr)
        return faults.INTERNAL
    finally:
        # A Ctrl-C halfway would leave a driver without its raylet, and then Ray ends the process from C++.
        with interrupts.ignored():
            closing.close()


def _read_and_check(options: argparse.Namespace) -> Request:
    """Raises ConfigError."""
    for option in ("resume", "output_dir", "cache_dir"):
        if (folder := getattr(options, option)) is not None:
            setattr(options, option, folders.expanded(folder, f"--{option.replace('_', '-')}"))
    config, origin = _read(options)
    pools = folders.cache_folder(config)
    folders.refuse_pictures(pools, "data.cache" if options.cache_dir is None else "--cache-dir")
    roots = [] if options.resume else folders.candidates(options)
    with blaming(*origin):
        check_shares(config, cpus=usable_cpus())
    return Request(options, config, origin, pools, roots)


def _start_ray(closing: ExitStack) -> "RayCluster":
    """Starts Ray in a thread. Raises ConfigError where it can't run."""
    # Ray takes a second to import, and with --local it is not needed.
    from sweep.execution.ray_cluster import RayCluster

    cluster = RayCluster(usable_cpus())
    closing.callback(cluster.close)
    return cluster


def _read(options: argparse.Namespace) -> tuple[SweepConfig, tuple[Path, dict[str, Any], dict[str, Any] | None]]:
    """The config with everything resolved, and where it came from. Raises ConfigError."""
    settings = parse_settings("--set", options.set)
    trial = None if options.trial is None else parse_settings("--trial", split_at_commas(options.trial))
    source = options.config
    if options.resume is not None:
        given = [f"--{key}" for key in ("set", "trial", "name", "dry_run") if getattr(options, key)]
        if given or options.config != QUICKSTART:
            raise ConfigError([f"--resume: cannot be changed by {', '.join(given) or '--config'}, but by --trials"])
        source = options.resume / "sweep.yaml"
        if not source.is_file():
            raise ConfigError(
                [f"--resume: must be a sweep's folder, got '{options.resume}': there is no sweep.yaml in it"]
            )
    elif options.retry_failed:
        raise ConfigError(["--retry-failed: needs --resume FOLDER"])
    if options.trials is not None:
        if not 1 <= options.trials < 2**31:
            raise ConfigError([f"--trials must be at least 1 and below {2**31}, got {options.trials}"])
        settings["search.trials"] = options.trials
    if options.cache_dir is not None:
        settings["data.cache"] = str(options.cache_dir)

    def tell(line: str) -> None:
        print(line, file=sys.stderr)

    config = load(source, settings, trial, to_resume=options.resume is not None, tell=tell)
    own = options.output_dir / config.data.cache if config.data.cache else folders.default_cache(options.output_dir)
    data = config.data.model_copy(update={"cache": str(own)})
    return config.model_copy(update={"data": data}), (source, settings, trial)


def _keep_traceback() -> str:
    """Writes the traceback into a file of its own, because there is no sweep.log; says where."""
    text = traceback.format_exc()
    try:
        with tempfile.NamedTemporaryFile("w", prefix="crnn-sweep-error-", suffix=".txt", delete=False) as file:
            file.write(text)
    except OSError:
        return "its traceback could not be kept"
    return f"its traceback is in {file.name}"
