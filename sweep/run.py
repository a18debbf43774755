"""`python -m sweep.run`: read, check, search, report."""

import argparse
import logging
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from platformdirs import user_cache_path

from model.config import shown, unusable_path
from model.streams import forgiving_streams
from sweep import faults, interrupts, layout
from sweep.config import QUICKSTART, ConfigError, SweepConfig, blaming, load, parse_settings, split_at_commas, walk
from sweep.faults import Fault

if TYPE_CHECKING:
    from sweep.progress import Terminal
    from sweep.ray_cluster import RayCluster
    from sweep.report import Reporter
    from sweep.resources import Allotment, Machine
    from sweep.searcher import Search
    from sweep.tensorboard_server import TensorBoard
    from sweep.trial import Workplace

_OWN_IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".mdb"}  # the last is LMDB's
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
    add("--retry-failed", action="store_true", help="with --resume: run the trials that failed once more")
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
    if sys.platform == "win32":
        print("crnn-sweep does not run on Windows; it runs on Linux, also in WSL", file=sys.stderr)
        return 2
    interrupts.listen()
    logging.raiseExceptions = False  # a full disk is told once, in a sentence
    closing = ExitStack()
    try:
        return _run(options, closing)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(str(error) or "\ninterrupted", file=sys.stderr)  # RayLost has a text
        return faults.INTERRUPTED
    except BaseException as error:
        # There is no sweep yet: what comes later ends in `_Sweep.run`.
        if (outside := faults.surroundings(error)) is not None:
            print(f"nothing was started: {outside}", file=sys.stderr)
            return 2
        print(f"an error of this program: {faults.one_line(error)}; {_keep_traceback()}", file=sys.stderr)
        return faults.INTERNAL
    finally:
        # A Ctrl-C halfway would leave a driver without its raylet, and then Ray ends the process from C++.
        with interrupts.ignored():
            closing.close()


def _keep_traceback() -> str:
    """Writes the traceback into a file of its own, because there is no sweep.log; says where."""
    text = traceback.format_exc()
    try:
        with tempfile.NamedTemporaryFile("w", prefix="crnn-sweep-error-", suffix=".txt", delete=False) as file:
            file.write(text)
    except OSError:
        return "its traceback could not be kept"
    return f"its traceback is in {file.name}"


def _run(options: argparse.Namespace, closing: ExitStack) -> int:
    for option in ("resume", "output_dir", "cache_dir"):
        if (folder := getattr(options, option)) is not None:
            setattr(options, option, _expanded(folder, f"--{option.replace('_', '-')}"))
    config, origin = _read(options)
    pools = _cache(config)
    _refuse_pictures(pools, "data.path" if options.cache_dir is None else "--cache-dir")
    candidates = [] if options.resume else _folders(options)
    from sweep.resources import allot, check_shares, this_machine, usable_cpus

    with blaming(*origin):
        check_shares(config, cpus=usable_cpus())
    cluster = None
    if not options.local and not options.dry_run:
        from sweep.ray_cluster import RayCluster

        cluster = RayCluster(usable_cpus())
        closing.callback(cluster.close)
    # Imported here: most bad input has been answered by now, and torch takes seconds, in which Ray starts.
    from sweep.searcher import trial_count

    machine = this_machine()
    with blaming(*origin):
        allotment = allot(config, machine, trial_count(config.search), options.local)
    if options.dry_run:
        _show(config, allotment)
        return 0

    from sweep.progress import Terminal, as_argument
    from sweep.trial import Workplace

    def workplace_in(root: Path) -> Workplace:
        return Workplace(root, pools, allotment.threads, allotment.gpus)

    if options.resume:
        workplace = workplace_in(_writable(options.resume, "--resume"))
        layout.require("--resume", workplace.root)
        if (lock := _lock(workplace)) is None:
            raise ConfigError([f"--resume: '{options.resume}' is not allowed: this sweep is running"])
    else:
        workplace, lock = _new_folder(candidates, config, workplace_in)
    closing.callback(lock.release)
    root = workplace.root
    resume = f"python -m sweep.run --resume {as_argument(root)}{' --local' * options.local}"
    terminal = Terminal(config, root, resume, verbosity=0 if options.quiet else 2 if options.verbose else 1)
    closing.callback(terminal.stop)
    return _Sweep(options, config, workplace, machine, allotment, terminal, cluster, closing).run()


@dataclass
class _Sweep:
    """A sweep that has its folder and its lock: from the first file in it to the report."""

    options: argparse.Namespace
    config: SweepConfig
    workplace: "Workplace"
    machine: "Machine"
    allotment: "Allotment"
    terminal: "Terminal"
    cluster: "RayCluster | None"
    closing: ExitStack
    search: "Search | None" = None
    reporter: "Reporter | None" = None
    board: "TensorBoard | None" = None

    def run(self) -> int:
        """The one way out of a sweep, whatever ends it: the exit code, after the leaderboard, the winner and the report
        of what there is, and the command that goes on. Raises ConfigError if the study is refused."""
        try:
            code = self._end(self._train())
        except ConfigError:
            raise
        except BaseException as error:
            fault = _logged(error)
            self.terminal.cut(fault.sentence)
            return fault.code
        if self.board is not None and sys.stdout.isatty() and interrupts.in_main_thread():
            with suppress(KeyboardInterrupt):
                if (address := self.board.address()) is not None:
                    self.terminal.stays(address)
                while sys.stdout.isatty() and not self.board.ended(within=1):
                    pass
        return code

    def _train(self) -> Fault | None:
        """Runs all trials that have not ended; says what kept it from that. Raises ConfigError."""
        try:
            self._open()
            self._run_trials()
        except ConfigError:
            raise
        except BaseException as error:  # among them a library's SystemExit
            return _logged(error)
        return None

    def _open(self) -> None:
        """Opens the study, which may be refused, before it changes any file."""
        from model.files import remove_leftovers, replace_file
        from sweep import machine_file
        from sweep.report import Reporter
        from sweep.searcher import Search

        root, terminal, options = self.workplace.root, self.terminal, self.options
        # In UTF-8 also where the terminal speaks another encoding.
        log = logging.FileHandler(root / "sweep.log", encoding="utf-8", errors="backslashreplace", delay=True)
        logging.basicConfig(handlers=[log], format="%(asctime)s %(message)s", level=logging.INFO, force=True)
        self.search = Search(
            self.config,
            root / "study.db",
            retry_failed=options.retry_failed,
            tell=lambda line: terminal.say(line, at=0),
        )
        remove_leftovers(root)
        replace_file(root / "sweep.yaml", self.config.yaml.encode())
        terminal.header(root / "sweep.yaml" if options.resume else options.config, self.machine, self.allotment)
        if (other := machine_file.keep(root / "machine.json", self.machine)) is not None:
            terminal.say(other, at=0)
        if options.tensorboard:
            from sweep.tensorboard_server import TensorBoard

            self.board = TensorBoard(root / "tensorboard", terminal.serves, terminal.serves_no_more)
            self.closing.callback(self.board.close)
        self.reporter = Reporter(self.config, self.workplace)

    def _run_trials(self) -> None:
        """Renders the images that are missing first."""
        from model.pools import another_main_module, ensure_pools
        from sweep.trial import Trial

        search, reporter, terminal, config = self.search, self.reporter, self.terminal, self.config
        assert search is not None
        assert reporter is not None
        images, confirmed = self.workplace.pools, config.confirm is not None
        with another_main_module():
            ensure_pools(config, images, self.allotment.total_cpus, terminal.rendered, test=confirmed)
        search.listeners = (terminal, reporter)
        terminal.search_begins(search)
        for record in search.finished:
            reporter.ended(record)
        if search.exhausted:
            terminal.say("nothing is left to do", at=0)
        elif self.cluster is None:
            from sweep import in_process

            in_process.run(search, lambda record: Trial(config, self.workplace, record), self.allotment.at_once)
        else:
            from sweep import on_ray

            on_ray.run(search, config, self.workplace, self.allotment, self.cluster, self._give_up)

    def _give_up(self, why: str) -> None:
        """Ends the process from a thread, for the main thread waits in Ray's C++ for a Ray that is lost."""
        try:
            self._end(Fault(why, faults.INTERRUPTED))
            sys.stdout.flush()
        finally:
            os._exit(faults.INTERRUPTED)

    def _end(self, fault: Fault | None) -> int:
        """Reports what there is. The exit code tells first what cut the sweep, then what the report lacks."""
        search, reporter, terminal = self.search, self.reporter, self.terminal
        if self.cluster is not None:
            self.cluster.stop()  # meanwhile the report is written
        terminal.stop()
        if search is None or reporter is None or (fault is not None and not search.records):
            assert fault is not None
            terminal.cut(fault.sentence)
            return fault.code
        if fault is not None and fault != faults.BY_YOU:
            search.halted = search.halted or fault.sentence
        search.interrupt()
        winner, verdict, lacking = reporter.finish(search)
        terminal.summary(search, winner, verdict)
        for lack in lacking:
            terminal.say(lack.sentence, at=0)
        worst = fault or max(lacking, key=lambda lack: lack.code, default=None)
        if worst is None or worst.code == 0 or search.interrupted:
            return fault.code if fault else search.exit_code
        terminal.cut(worst.sentence)  # all trials have ended, but not the sweep
        return worst.code


def _logged(error: BaseException) -> Fault:
    """What the error means, its traceback in sweep.log."""
    if not isinstance(error, KeyboardInterrupt):
        logging.getLogger("sweep").error("the sweep was cut:", exc_info=error)
    return Fault.of(error)


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
            raise ConfigError([f"--resume: '{options.resume}' is not allowed: there is no sweep.yaml in it"])
    elif options.retry_failed:
        raise ConfigError(["--retry-failed: needs --resume FOLDER"])
    if options.trials is not None:
        if not 1 <= options.trials < 2**31:
            raise ConfigError([f"--trials must be at least 1 and below {2**31}, got {options.trials}"])
        settings["search.trials"] = options.trials
    if options.cache_dir is not None:
        settings["data.path"] = str(options.cache_dir)
    config = load(source, settings, trial)
    own = options.output_dir / config.data.path if config.data.path else _default_cache(options.output_dir)
    data = config.data.model_copy(update={"path": str(own)})
    return config.model_copy(update={"data": data}), (source, settings, trial)


def _default_cache(outputs: Path) -> Path:
    """The user's cache, or a folder beside the sweeps for a user without a home, as in a container."""
    try:
        return user_cache_path("crnn-sweep")
    except RuntimeError:
        return outputs / ".cache"


def _cache(config: SweepConfig) -> Path:
    """The folder of the rendered images as an absolute path. Raises ConfigError if it can't be written, unless all
    images are there already, as in a cache that belongs to somebody else."""
    folder = Path(str(config.data.path)).expanduser().absolute()
    try:
        return _writable(folder, "--cache-dir")
    except ConfigError:
        from model.pools import missing_pools

        if missing_pools(config, folder, test=config.confirm is not None):
            raise
    return folder


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
    root = outputs / options.name
    if root.exists() and not _is_free(root):
        raise _taken(root)
    return [root]


def _new_folder(
    candidates: Sequence[Path], config: SweepConfig, workplace: "Callable[[Path], Workplace]"
) -> tuple["Workplace", FileLock]:
    """Takes the first folder that is free, and its lock: of two sweeps that start with one name, the second is refused.
    Raises ConfigError."""
    from model.files import replace_file

    for root in candidates:
        try:
            root.mkdir(parents=True, exist_ok=True)
            if not _is_free(root) or (lock := _lock(workplace(root))) is None:
                continue
            if _is_free(root):  # not taken while this sweep waited for the lock
                replace_file(root / "sweep.yaml", config.yaml.encode())
                return workplace(root), lock
            lock.release()
        except FileExistsError:  # a file
            continue
        except OSError as error:
            raise _not_writable("--output-dir", root.parent, str(error.strerror)) from None
    raise _taken(candidates[0])


def _is_free(root: Path) -> bool:
    """Whether it is a folder without anything, or with no more than a sweep leaves that is killed as it begins."""
    return root.is_dir() and all(path.name == "ray" or path.name.startswith(".sweep.yaml.") for path in root.iterdir())


def _lock(workplace: "Workplace") -> FileLock | None:
    """The sweep's lock, None if it is running. A killed sweep's lock goes with it; its workers' locks on their trials
    may last some seconds longer. Raises OSError."""
    try:
        lock = workplace.lock("sweep")
        lock.acquire(timeout=0)
    except TimeoutError:
        return None
    return lock


def _taken(root: Path) -> ConfigError:
    return ConfigError([f"--name: {root.name!r} is not allowed: {root} exists already"])


def _not_writable(option: str, folder: Path, reason: str) -> ConfigError:
    return ConfigError([f"{option}: {str(folder)!r} is not allowed: cannot be written: {reason}"])


def _expanded(folder: Path, option: str) -> Path:
    """As an absolute path, with ~ replaced. Raises ConfigError if there can't be such a folder."""
    try:
        found = folder.expanduser().absolute()
    except RuntimeError:
        raise ConfigError([f"{option} must begin with the name of a user after ~, got {shown(str(folder))}"]) from None
    if (problem := unusable_path(str(found))) is not None:
        raise ConfigError([f"{option} {problem}, got {shown(str(folder))}"])
    return found


def _refuse_pictures(folder: Path, key: str) -> None:
    """Raises ConfigError for somebody's own images, on which no sweep would train, and among which it would write."""
    with suppress(OSError):
        for path in islice(chain(folder.iterdir(), folder.glob("*/*")), 10_000):
            if path.suffix.lower() in _OWN_IMAGES:
                found = f"{str(folder)!r}, which holds {path.name!r}"
                raise ConfigError([f"{key} must be a cache of rendered captchas, not own images, got {found}"])


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
    from sweep.searcher import Search, limit

    search = Search(config, None)
    print(config.yaml)
    if (limited := limit(config.search)) is not None:
        print(f"# {limited}")
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


def command() -> int:
    """Runs `main` as the whole process does: its exit code is settled, and Ray is left to the system."""
    code = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is told: one more Ctrl-C must not change the exit code
    if "ray" in sys.modules:
        os._exit(code)  # Ray would take a second to tidy up what the system takes back anyway
    return code  # --local: a profiler or debugger around this process gets its end


if __name__ == "__main__":
    sys.exit(command())
