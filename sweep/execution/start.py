"""Start of a sweep: reads and checks the command line, the config and the folders, and starts Ray."""

import argparse
import logging
import os
import sys
import tempfile
import traceback
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.system.malloc import collector_paused
from sweep.config import (
    OWN_IMAGES,
    QUICKSTART,
    ConfigError,
    SweepConfig,
    blaming,
    load,
    named_files,
    parse_settings,
    split_at_commas,
)
from sweep.config.want import WANT
from sweep.execution import folders, interrupts, own_images, ray_compat, storage
from sweep.execution.storage import Storage
from sweep.machine.cpus import check_shares, usable_cpus
from sweep.wording import faults

if TYPE_CHECKING:
    from sweep.execution.ray_cluster import RayCluster


@dataclass(frozen=True)
class Request:
    """The command line, read and checked."""

    options: argparse.Namespace
    config: SweepConfig
    origin: tuple[Path, dict[str, Any], dict[str, Any] | None]  # the config's file, --set and --trial
    pools: Path
    roots: list[Path]  # where a new sweep may lie, in order of preference
    storage: Storage | None  # of --sync-to, --storage or --resume URI

    @property
    def exchange(self) -> Storage | None:
        """The storage, if trials exchange their files with the sweep through it, because their machines may not share
        the sweep's folder."""
        return self.storage if self.options.address != "local" and self.options.storage is not None else None


def run(options: argparse.Namespace) -> int:
    """Runs a sweep and returns its exit code. Errors before the sweep has its folder are reported here, later ones by
    `Sweep.run`."""
    interrupts.listen()
    logging.raiseExceptions = False  # report a full disk once instead of once per log call
    closing = ExitStack()
    try:
        request = _read_and_check(options)
        cluster = None if options.local or options.dry_run else _connect(options.address, closing)
        # Imported late, because torch takes seconds: most bad input is refused before, and Ray starts in the meantime.
        with collector_paused():
            from sweep.execution import sweep

        return sweep.run(request, cluster, closing)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:  # printed before Ray is closed, which may take seconds
        print(str(error) or "\ninterrupted", file=sys.stderr)  # RayLost has a message
        return faults.INTERRUPTED
    except BaseException as error:
        if (outside := faults.surroundings(error)) is not None:
            print(f"nothing was started: {outside}", file=sys.stderr)
            return 2
        print(f"an error of this program: {faults.one_line(error)}; {_keep_traceback()}", file=sys.stderr)
        return faults.INTERNAL
    finally:
        # Ctrl-C in the middle would leave Ray's driver without its raylet, for which Ray's C++ ends the process.
        with interrupts.ignored():
            closing.close()


def _read_and_check(options: argparse.Namespace) -> Request:
    """Reads the config and checks all that needs neither torch nor Ray. Raises ConfigError."""
    options.start_or_resume = options.resume is True  # --resume without a folder
    if options.start_or_resume:
        options.resume = None
        if options.name is None:
            raise ConfigError(["--resume: needs the FOLDER of a sweep, or --name of one to start or go on with"])
    for option in ("resume", "output_dir", "cache_dir"):
        if isinstance(folder := getattr(options, option), Path):
            setattr(options, option, folders.expanded(folder, f"--{option.replace('_', '-')}"))
    if options.sync_to is not None and options.storage is not None:
        raise ConfigError(["--sync-to: cannot be used with --storage, which copies too"])
    place, option = None, "--sync-to" if options.storage is None else "--storage"
    if storage.is_uri(options.resume):
        options.storage, place = options.resume, _fetched(options)
    elif (uri := options.sync_to or options.storage) is not None:
        place = Storage.open(option, uri)
        if (
            options.start_or_resume
            and storage.STUDY in place.there
            and not (options.output_dir / options.name).exists()
        ):
            storage.fetch(option, place, options.output_dir, options.name)
    options.fetched = place is not None and bool(place.fetched)
    config, origin = _read(options)
    pools = folders.cache_folder(config)
    folders.refuse_pictures(pools, "data.cache" if options.cache_dir is None else "--cache-dir")
    roots = [] if options.resume else folders.candidates(options)
    with blaming(*origin):
        if not config.image.is_known:
            config = own_images.look_at(config, pools, options)
    if options.start_or_resume:
        folders.require_free_or_same(roots[0], config)
    options.address = _checked_address(options)
    if options.address == "local":
        with blaming(*origin):
            check_shares(config, cpus=usable_cpus())
    if place is not None:
        _check_storage(option, place, options.resume or roots[0], options, config)
    return Request(options, config, origin, pools, roots, place)


def _fetched(options: argparse.Namespace) -> Storage:
    """Fetches the sweep of `--resume URI`, and makes its folder the one to go on with. Raises ConfigError."""
    _refuse_changes(options)
    found = Storage.open("--resume", options.resume)
    options.resume = storage.fetch("--resume", found, options.output_dir)
    return found


def _check_storage(option: str, place: Storage, root: Path, options: argparse.Namespace, config: SweepConfig) -> None:
    """Raises ConfigError unless the storage can be written, and holds nothing or an earlier state of the sweep."""
    storage.require_apart(option, place, root)
    if (root / "sweep.yaml").is_file():
        if not place.fetched:
            storage.require_older(option, place, root, config)
    else:
        storage.require_free(option, place)
    if not options.dry_run:
        place.begin(option, config.yaml.encode())


def _connect(address: str, closing: ExitStack) -> "RayCluster":
    """Starts or joins Ray in a thread. Raises ConfigError where that can't be."""
    if address != "local":
        ray_compat.import_ray(joining=True)
    # Imported here, because Ray takes a second to import and --local does not need it.
    from sweep.execution.ray_cluster import JoinedCluster, OwnCluster

    cluster = OwnCluster(usable_cpus()) if address == "local" else JoinedCluster(address)
    closing.callback(cluster.close)
    return cluster


def _read(options: argparse.Namespace) -> tuple[SweepConfig, tuple[Path, dict[str, Any], dict[str, Any] | None]]:
    """The config with all options applied, and its origin (file, --set, --trial) for error sentences. Raises
    ConfigError."""
    settings = named_files.forget_digests(parse_settings("--set", options.set))
    trial = None if options.trial is None else parse_settings("--trial", split_at_commas(options.trial))
    source = options.config
    if options.resume is not None:
        _refuse_changes(options)
        source = options.resume / "sweep.yaml"
        if not source.is_file():
            raise ConfigError(
                [f"--resume: must be a sweep's folder, got '{options.resume}': there is no sweep.yaml in it"]
            )
    elif options.retry_failed and not options.start_or_resume:
        raise ConfigError(["--retry-failed: needs --resume"])
    if options.images is not None:
        settings["images.path"] = options.images
        if options.config == QUICKSTART:
            source = options.config = OWN_IMAGES
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
    if options.fetched and options.cache_dir is None and not own.is_dir():  # another machine's
        own = folders.default_cache(options.output_dir)
    data = config.data.model_copy(update={"cache": str(own)})
    origin = source, settings, trial
    with blaming(*origin):
        return named_files.pinned(config.model_copy(update={"data": data}), options.resume), origin


def _refuse_changes(options: argparse.Namespace) -> None:
    given = [f"--{key}" for key in ("set", "trial", "name", "dry_run", "images") if getattr(options, key)]
    if given or options.config != QUICKSTART:
        raise ConfigError([f"--resume: cannot be changed by {', '.join(given) or '--config'}, but by --trials"])
    if options.trials is not None and isinstance(options.resume, Path) and (options.resume / WANT).exists():
        raise ConfigError([f"--trials: cannot be used beside {options.resume / WANT}, which says how many trials"])


def _checked_address(options: argparse.Namespace) -> str:
    """`local`, `auto` or HOST:PORT, from `--address` and, if that is `auto`, RAY_ADDRESS. Raises ConfigError."""
    asked = options.address
    meant = (os.environ.get("RAY_ADDRESS", "").strip() or asked) if asked == "auto" else asked
    told = repr(asked) if meant == asked else f"{asked!r} with RAY_ADDRESS={meant!r}"
    if meant.startswith("ray://"):
        # Ray Client runs Tune's driver in an actor on the cluster, with a pickled copy of the searcher and the
        # scheduler. Ours ask the search, whose study, locks and terminal are in this process.
        raise ConfigError(
            [
                f"--address: must not be of Ray Client, got {told}: run the command on a node of the cluster with "
                f"--address auto, or by: ray job submit -- python -m sweep.run --address auto …"
            ]
        )
    host, _, port = meant.rpartition(":")
    if meant not in ("local", "auto") and not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise ConfigError([f"--address: must be local, auto or HOST:PORT, got {told}"])
    if asked != "local" and options.local:
        raise ConfigError(["--address: cannot be used with --local, which runs without Ray"])
    return str(meant)


def _keep_traceback() -> str:
    """Writes the traceback to a temporary file, because there is no sweep.log yet. Returns a clause that says where."""
    text = traceback.format_exc()
    try:
        with tempfile.NamedTemporaryFile("w", prefix="crnn-sweep-error-", suffix=".txt", delete=False) as file:
            file.write(text)
    except OSError:
        return "its traceback could not be kept"
    return f"its traceback is in {file.name}"
