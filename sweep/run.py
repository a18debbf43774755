"""`python -m sweep.run`: read, check, search, report."""

import argparse
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from platformdirs import user_cache_path

from model.streams import forgiving_streams
from sweep import interrupts
from sweep.config import ConfigError, SweepConfig, load, parse_settings, walk

if TYPE_CHECKING:
    from sweep.progress import Terminal
    from sweep.ray_cluster import RayCluster
    from sweep.resources import Allotment
    from sweep.trial import Workplace

QUICKSTART = Path(__file__).resolve().parent.parent / "configs" / "quickstart.yaml"
_NAME = re.compile(r"[A-Za-z0-9_=+-][A-Za-z0-9._=+-]{0,99}")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sweep.run",
        description="Search learning rate and schedule of a captcha recogniser; compare all trials in TensorBoard.",
    )
    add = parser.add_argument
    add("--config", type=Path, default=QUICKSTART, help="YAML (default configs/quickstart.yaml)")
    add("--set", action="append", default=[], metavar="PATH=VALUE", help="override a value, optimizer.lr=3e-4")
    add("--trial", metavar="PATH=VALUE,…", help="run this one trial instead of a search")
    add("--trials", type=int, metavar="N", help="as --set search.trials=N; with --resume, extends a sweep")
    add("--resume", type=Path, metavar="FOLDER", help="go on with the sweep in this folder")
    add("--name", help="folder of this sweep (default CONFIG-DATE-TIME)")
    add("--output-dir", type=Path, default=Path("runs"), metavar="DIR", help="where sweeps lie (default runs)")
    add("--cache-dir", type=Path, metavar="DIR", help="where rendered images lie (default: the user's cache)")
    add("--dry-run", action="store_true", help="show config, space and five sampled trials; start nothing")
    add("--local", action="store_true", help="run the trials in this process, without Ray")
    add("--tensorboard", action="store_true", help="serve TensorBoard on 127.0.0.1 while the sweep runs")
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("--quiet", action="store_true", help="print the result alone")
    loudness.add_argument("--verbose", action="store_true", help="print a line for each epoch")
    return parser.parse_args(arguments)


@forgiving_streams()
def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    interrupts.listen()
    logging.raiseExceptions = False  # a full disk is told once, in a sentence
    closing = ExitStack()
    try:
        return _run(options, closing)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    finally:
        # A Ctrl-C halfway would leave a driver without its raylet, and then Ray ends the process from C++.
        with interrupts.ignored():
            closing.close()


def _run(options: argparse.Namespace, closing: ExitStack) -> int:
    config = _read(options)
    pools = _writable(Path(str(config.data.path)), "--cache-dir")
    candidates = [] if options.resume else _folders(options)
    from sweep.resources import allot, this_machine, usable_cpus

    cluster = None
    if not options.local and not options.dry_run:
        from sweep.ray_cluster import RayCluster

        cluster = RayCluster(usable_cpus())
        closing.callback(cluster.close)
    # Imported here: most bad input has been answered by now, and torch takes seconds, in which Ray starts.
    from sweep.searcher import trial_count

    machine = this_machine()
    allotment = allot(config, machine, trial_count(config.search), options.local)
    if options.dry_run:
        _show(config, allotment)
        return 0
    root = _writable(options.resume, "--resume") if options.resume else _new_folder(candidates)

    from model.files import replace_file
    from sweep.progress import Terminal, as_argument
    from sweep.trial import Workplace, is_disk_full

    workplace = Workplace(root, pools, allotment.threads, allotment.gpus)
    resume = f"python -m sweep.run --resume {as_argument(root)}{' --local' * options.local}"
    terminal = Terminal(config, root, resume, verbosity=0 if options.quiet else 2 if options.verbose else 1)
    closing.callback(terminal.stop)
    try:
        # A killed sweep's lock goes with it; its workers' locks on their trials may last some seconds longer.
        closing.enter_context(workplace.lock("sweep").acquire(timeout=0))
    except TimeoutError:
        raise ConfigError([f"--resume: '{options.resume}' is not allowed: this sweep is running"]) from None
    try:
        replace_file(root / "sweep.yaml", config.yaml.encode())
        logging.basicConfig(
            filename=root / "sweep.log",
            encoding="utf-8",  # also where the terminal's is another
            errors="backslashreplace",
            format="%(asctime)s %(message)s",
            level=logging.INFO,
            force=True,
        )
        terminal.header(root / "sweep.yaml" if options.resume else options.config, machine, allotment)
        if options.tensorboard:
            from sweep.tensorboard_server import TensorBoard

            board = TensorBoard(root / "tensorboard", terminal.serves, terminal.serves_no_more)
            closing.callback(board.close)
        status = _search(config, workplace, allotment, terminal, cluster)
    except KeyboardInterrupt:
        terminal.cut("by you")
        return 130
    except BrokenProcessPool:
        terminal.cut("a process that rendered images was killed")
        return 130
    except Exception as error:
        if not is_disk_full(error):
            raise
        terminal.cut("no space is left on the disk")
        return 130
    if options.tensorboard and sys.stdout.isatty() and interrupts.in_main_thread():
        with suppress(KeyboardInterrupt):
            if (address := board.address()) is not None:
                terminal.stays(address)
            while sys.stdout.isatty() and not board.ended(within=1):
                pass
    return status


def _search(
    config: SweepConfig,
    workplace: "Workplace",
    allotment: "Allotment",
    terminal: "Terminal",
    cluster: "RayCluster | None",
) -> int:
    """Renders what is missing, runs all trials that have not ended, reports, also after an interruption."""
    from model.pools import ensure_pools
    from sweep.report import Reporter
    from sweep.searcher import Search
    from sweep.trial import Trial, is_disk_full

    ensure_pools(config, workplace.pools, allotment.total_cpus, terminal.rendered, test=config.confirm is not None)
    reporter = Reporter(config, workplace)
    search = Search(config, workplace.root / "study.db", (terminal, reporter))
    terminal.search_begins(search)
    for record in search.finished:
        reporter.ended(record)
    if nothing_left := search.exhausted:
        terminal.say("nothing is left to do", at=0)
    try:
        if cluster is None:
            from sweep import in_process

            in_process.run(search, lambda record: Trial(config, workplace, record), allotment.at_once)
        elif not nothing_left:
            from sweep import on_ray

            on_ray.run(search, config, workplace, allotment, cluster)
    except KeyboardInterrupt:
        pass  # what is known is on disk; the report says what is missing
    except Exception as error:
        if not is_disk_full(error):
            raise
        search.halted = "no space is left on the disk"
    if cluster is not None:
        cluster.stop()  # meanwhile the report is written
    terminal.stop()
    search.interrupt()
    terminal.summary(search, *reporter.finish(search))
    return 0 if nothing_left else search.exit_code


def _read(options: argparse.Namespace) -> SweepConfig:
    """The config with everything resolved. Raises ConfigError."""
    settings = parse_settings("--set", options.set)
    trial = None if options.trial is None else parse_settings("--trial", options.trial.split(","))
    source = options.config
    if options.resume is not None:
        given = [f"--{key}" for key in ("set", "trial", "name", "dry_run") if getattr(options, key)]
        if given or options.config != QUICKSTART:
            raise ConfigError([f"--resume: cannot be changed by {', '.join(given) or '--config'}, but by --trials"])
        source = options.resume / "sweep.yaml"
        if not source.is_file():
            raise ConfigError([f"--resume: '{options.resume}' is not allowed: there is no sweep.yaml in it"])
    if options.trials is not None:
        if options.trials < 1:
            raise ConfigError([f"--trials: {options.trials} is not allowed: should be greater than or equal to 1"])
        settings["search.trials"] = options.trials
    if options.cache_dir is not None:
        settings["data.path"] = str(options.cache_dir.expanduser().absolute())
    config = load(source, settings, trial)
    own = options.output_dir.absolute() / config.data.path if config.data.path else user_cache_path("crnn-sweep")
    return load(source, {**settings, "data.path": str(own)}, trial)


def _folders(options: argparse.Namespace) -> list[Path]:
    """Where the sweep may lie, in order of preference. Raises ConfigError."""
    outputs = _writable(options.output_dir, "--output-dir")
    if options.name is None:
        stem = re.sub(r"[^A-Za-z0-9._=+-]", "-", options.config.stem)[:60].lstrip(".") or "sweep"
        first = outputs / f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
        return [first, *(first.with_name(f"{first.name}-{again}") for again in range(2, 100))]
    if not _NAME.fullmatch(options.name):
        raise ConfigError(
            [f"--name: {options.name!r} is not allowed: 1 to 100 letters, digits and . _ = + -, not a dot first"]
        )
    if (outputs / options.name).exists():
        raise _taken(outputs / options.name)
    return [outputs / options.name]


def _new_folder(candidates: Sequence[Path]) -> Path:
    """The first that can be made: of two sweeps that start with one name, the second is refused."""
    for root in candidates:
        try:
            root.parent.mkdir(parents=True, exist_ok=True)
            root.mkdir()
            return root
        except FileExistsError:
            continue
        except OSError as error:
            raise _not_writable("--output-dir", root.parent, str(error.strerror)) from None
    raise _taken(candidates[0])


def _taken(root: Path) -> ConfigError:
    return ConfigError([f"--name: {root.name!r} is not allowed: {root} exists already"])


def _not_writable(option: str, folder: Path, reason: str) -> ConfigError:
    return ConfigError([f"{option}: {str(folder)!r} is not allowed: cannot be written: {reason}"])


def _writable(folder: Path, option: str) -> Path:
    """The folder as an absolute path. Raises ConfigError if it is not there and can't be made, or can't be written."""
    folder = folder.expanduser().absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise _not_writable(option, folder, f"{there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise _not_writable(option, folder, f"{there} is not yours to write")
    return folder


def _show(config: SweepConfig, allotment: "Allotment") -> None:
    """What a sweep would do."""
    from model.pools import pool_specs
    from sweep.resources import best_bytes, resume_bytes
    from sweep.searcher import Search

    search = Search(config, None)
    print(config.yaml)
    print(f"# {search.trials} trials over")
    for path, parameter, given in walk(config.search.space):
        condition = "".join(f"  if {key} = {value}" for key, value in given.items())
        print(f"#   {path}: {parameter}{condition}")
    print("# for example")
    for _ in range(5):
        if (record := search.ask()) is not None:
            print(f"#   {record.name}")
    if config.confirm is not None:
        print(f"# then the best {config.confirm.top} again, with {config.confirm.seeds} fresh seeds each")
    images = sum(spec.file_bytes for spec in pool_specs(config, test=config.confirm is not None).values())
    running, kept = allotment.at_once * resume_bytes(config), search.most * best_bytes(config)
    print("# disk")
    print(f"#   images: {megabytes(images)} in {config.data.path}")
    print(f"#   checkpoints to resume from: {megabytes(running)}, two for each of {allotment.at_once} trials at once")
    print(f"#   checkpoints that stay: {megabytes(kept)}, best.pt of each trial")


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


if __name__ == "__main__":
    code = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is told: one more Ctrl-C must not change the exit code
    os._exit(code)  # torch and Ray would take a second to tidy up what the system takes back anyway
