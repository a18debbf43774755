"""The course of a sweep: takes its folder, runs its trials and writes its report, whatever ends it."""

import argparse
import logging
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from model.data.catalog import BAD_IMAGES
from model.data.pools import ensure_pools
from model.data.source import source_of
from model.data.workers import another_main_module
from model.system.files import remove_leftovers, replace_file
from sweep.config import ConfigError, SweepConfig, blaming
from sweep.config.workplace import Workplace
from sweep.execution import bus_error, dry_run, folders, in_process, interrupts, start_weights
from sweep.execution.collector import Collector
from sweep.execution.mirror import Mirror
from sweep.execution.start import Request
from sweep.execution.storage import PATIENCE, STUDY, Storage, owned
from sweep.execution.trial import Trial
from sweep.execution.width import Width
from sweep.machine import machine_file
from sweep.machine.file_systems import is_on_network
from sweep.machine.resources import Allotment, Machine, allot, this_machine, together
from sweep.search import study_file
from sweep.search.samplers import trial_count
from sweep.search.search import Search
from sweep.tensorboard.server import TensorBoard
from sweep.terminal.terminal import Terminal, as_argument
from sweep.verdict.reporter import Reporter
from sweep.wording import faults
from sweep.wording.faults import Fault

if TYPE_CHECKING:
    from sweep.execution.nodes import Node
    from sweep.execution.ray_cluster import RayCluster

_HURRIED = 8.0  # seconds without an answer after which a storage is given up at the end of an interrupted sweep


def run(request: Request, cluster: "RayCluster | None", closing: ExitStack) -> int:
    """Shares out the machine, takes the sweep's folder and lock, and runs the sweep. Returns the exit code. Callbacks
    that the caller must run at the end are pushed onto `closing`. Raises ConfigError."""
    options, config = request.options, request.config
    nodes = _ready_nodes(request, cluster)
    members = [node.machine for node in nodes]
    machine = this_machine()
    with blaming(*request.origin):
        allotment = allot(config, machine, trial_count(config.search), options.local, members)
        notes = start_weights.check(config, options.resume)
    if options.dry_run:
        dry_run.show(config, allotment, notes)
        return 0

    def workplace_in(root: Path) -> Workplace:
        uri = None if request.exchange is None else request.exchange.uri
        return Workplace(root, request.pools, allotment.threads, allotment.gpus, elsewhere=bool(members), storage=uri)

    if options.resume:
        workplace = workplace_in(options.resume)
        lock = folders.take_begun("--resume", workplace)
    elif options.start_or_resume:
        workplace = workplace_in(request.roots[0])
        lock = folders.take_new_or_begun(workplace.root, config, workplace_in)
    else:
        workplace, lock = folders.take_new(request.roots, config, workplace_in)
    closing.callback(lock.release)
    root = workplace.root
    resume = f"python -m sweep.run --resume {as_argument(root)}{' --local' * options.local}"
    if members:
        resume += f" --address {options.address}"
    if request.storage is not None:
        option = "--sync-to" if request.exchange is None else "--storage"
        resume += f" {option} {shlex.quote(request.storage.shown)}"
        notes += request.storage.notes
    terminal = Terminal(config, root, resume, verbosity=0 if options.quiet else 2 if options.verbose else 1)
    closing.callback(terminal.stop)
    machine = together(members) if members else machine
    return Sweep(
        options, config, workplace, machine, allotment, terminal, cluster, nodes, closing, notes, request.storage
    ).run()


def _ready_nodes(request: Request, cluster: "RayCluster | None") -> "list[Node]":
    """The nodes of a joined cluster, after looking at each and showing what there is; none without one. Raises
    ConfigError if a trial could not run on one of them."""
    if cluster is None or not cluster.joined:
        return []
    from sweep.execution import nodes  # imports Ray, which --local does without

    cluster.wait()
    root = request.options.resume or request.roots[0]
    needs = nodes.Needs(request.config, root, request.pools, request.exchange)
    found = needs.look().nodes()
    if not request.options.quiet:
        nodes.show(found, "folder" if request.exchange is None else "storage")
    nodes.require_ready(needs, found)
    return found


@dataclass
class Sweep:
    """A sweep that holds the lock of its folder. `run` trains its trials and writes its results."""

    options: argparse.Namespace
    config: SweepConfig
    workplace: Workplace
    machine: Machine
    allotment: Allotment
    terminal: Terminal
    cluster: "RayCluster | None"
    nodes: "Sequence[Node]"  # those of a joined cluster
    closing: ExitStack
    notes: Sequence[str]  # about the weights that training starts from, and the storage
    storage: Storage | None
    search: Search | None = None
    reporter: Reporter | None = None
    board: TensorBoard | None = None
    mirror: Mirror | None = None
    collector: Collector | None = None

    def run(self) -> int:
        """Runs the sweep and returns its exit code. Whatever ends the sweep, this first writes the leaderboard, the
        winner and the report of the trials so far, and prints the command that resumes an interrupted sweep. Raises
        ConfigError if the study is damaged or belongs to another config."""
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
        """Runs all trials that have not ended. Returns None, or the fault that cut the sweep. Raises ConfigError."""
        try:
            self._open()
            self._run_trials()
        except ConfigError:
            raise
        except BaseException as error:  # a library may raise SystemExit
            return _logged(error)
        return None

    def _open(self) -> None:
        """Opens the study, the log, TensorBoard and the reporter. The study comes first, because it may be refused, and
        a refused sweep must not change any file. Raises ConfigError."""
        root, terminal, options = self.workplace.root, self.terminal, self.options
        tell = partial(terminal.say, at=0)
        # UTF-8 even if the locale has another encoding.
        log = logging.FileHandler(root / "sweep.log", encoding="utf-8", errors="backslashreplace", delay=True)
        logging.basicConfig(handlers=[log], format="%(asctime)s %(message)s", level=logging.INFO, force=True)
        working = self._study_on_disk()
        self.search = Search(
            self.config,
            root / STUDY,
            retry_failed=options.retry_failed,
            working=working,
            tell=tell,
        )
        remove_leftovers(root)
        start_weights.keep_copy(self.config, root)
        replace_file(root / "sweep.yaml", self.config.yaml.encode())
        source = root / "sweep.yaml" if options.resume else options.config
        terminal.header(source, self.machine, self.allotment, self.notes)
        if (other := machine_file.keep(root / "machine.json", self.machine)) is not None:
            terminal.say(other, at=0)
        for line in source_of(self.config).findings(self.workplace.pools, root / BAD_IMAGES):
            logging.getLogger("sweep").info(line)
        if options.tensorboard:
            self.board = TensorBoard(root / "tensorboard", terminal.serves, terminal.serves_no_more)
            self.closing.callback(self.board.close)
        self.reporter = Reporter(self.config, self.workplace)
        if self.storage is not None:
            study = partial(study_file.snapshot, working or root / STUDY)
            elsewhere = owned(self.storage)
            here = {record.name for record in self.search.records.values()} - elsewhere
            exchange = self.workplace.storage is not None
            self.mirror = Mirror(self.storage, root, study, tell, here if exchange else None)
            self.closing.callback(self.mirror.close)
            if exchange:
                self.collector = Collector(self.storage, root, self.reporter.ended, self.mirror, tell, elsewhere)
                self.closing.callback(self.collector.close)

    def _study_on_disk(self) -> Path | None:
        """Where the study lies while the sweep runs, if not in the sweep's folder, because that is on a network file
        system."""
        if not is_on_network(self.workplace.root) or is_on_network(Path(tempfile.gettempdir())):
            return None
        folder = tempfile.TemporaryDirectory(prefix="crnn-sweep-study-", ignore_cleanup_errors=True)
        return Path(self.closing.enter_context(folder), STUDY)

    def _run_trials(self) -> None:
        """Renders missing images, then runs the trials that have not ended."""
        search, reporter, terminal, config = self.search, self.reporter, self.terminal, self.config
        assert search is not None
        assert reporter is not None
        images, confirmed = self.workplace.pools, config.confirm is not None
        with another_main_module():
            ensure_pools(config, images, self.allotment.total_cpus, terminal.rendered, test=confirmed)
        completes = self.collector or reporter
        search.listeners = (terminal, completes, *filter(None, [self.mirror]))
        terminal.search_begins(search)
        for record in search.finished:
            completes.ended(record)
        width = Width(
            self.workplace.root, search, terminal, self.allotment.at_once, config.search.max_concurrent == "auto"
        )
        make_trial = partial(Trial, config, self.workplace)
        width.at_once()  # reads want.yaml, which may ask for more trials than have ended
        if search.exhausted:
            terminal.say("nothing is left to do: all trials of this sweep have ended", at=0)
        elif self.cluster is None:
            with bus_error.answered(self._give_up_without_image):
                in_process.run(search, make_trial, width.at_once)
        else:
            from sweep.execution import nodes, on_ray  # imports Ray, which --local does without

            exchange = self.storage if self.workplace.storage is not None else None
            if self.mirror is not None and exchange is not None:
                self.mirror.wait(PATIENCE)  # trials fetch from the storage what is here
            members = None
            if self.cluster.joined:
                needs = nodes.Needs(config, self.workplace.root, images, exchange)
                members = nodes.Members(needs, self.nodes, partial(terminal.say, at=0))
            on_ray.run(
                search, make_trial, config, self.workplace, self.allotment, width, self.cluster, members, self._give_up
            )

    def _give_up_without_image(self) -> None:
        cut = None
        with suppress(OSError):
            cut = bus_error.cut_pool(self.config, self.workplace.pools)
        self._give_up(cut or "the disk could not read a file that is mapped into memory (SIGBUS)")

    def _give_up(self, why: str) -> None:
        """Writes the report, closes what the main thread would close and ends the process. Called from a thread when
        the main thread can't go on: Ray is lost and its C++ blocks, or an image can't be read."""
        try:
            self._end(Fault(why, faults.INTERRUPTED))
        except BaseException as error:
            self.terminal.cut(f"{why}; {_logged(error).sentence}")
        finally:
            sys.stdout.flush()
            try:
                self.closing.close()
            finally:
                os._exit(faults.INTERRUPTED)

    def _end(self, fault: Fault | None) -> int:
        """Writes, prints and uploads the results so far, and returns the exit code."""
        code = self._finish(fault)
        if self.mirror is None:
            return code
        lacking = self.mirror.finish(_HURRIED if code == faults.INTERRUPTED else PATIENCE)
        if lacking is not None:
            self.terminal.say(f"{lacking}; to go on: {self.terminal.resume}", at=0)
        return code if lacking is None else code or faults.INTERRUPTED

    def _finish(self, fault: Fault | None) -> int:
        """Writes and prints the results so far. The exit code is that of the fault that cut the sweep; else that of the
        worst fault in writing the results; else that of the search."""
        search, reporter, terminal = self.search, self.reporter, self.terminal
        if self.cluster is not None:
            self.cluster.stop()  # Ray shuts down while the report is written
        terminal.stop()
        if search is None or reporter is None or (fault is not None and not search.records):
            assert fault is not None
            terminal.cut(fault.sentence)
            return fault.code
        if fault is not None and fault != faults.BY_YOU:
            search.halted = search.halted or fault.sentence
        search.interrupt()
        missing = self._collect(search)
        winner, verdict, lacking = reporter.finish(search)
        lacking = [*missing, *lacking]
        terminal.summary(search, winner, verdict)
        for lack in lacking:
            terminal.say(lack.sentence, at=0)
        worst = fault or max(lacking, key=lambda lack: lack.code, default=None)
        if worst is None or worst.code == 0 or search.interrupted:
            return fault.code if fault else search.exit_code
        terminal.cut(worst.sentence)  # all trials have ended, but some results are missing
        return worst.code

    def _collect(self, search: Search) -> list[Fault]:
        """Fetches the files of trials that are still in the storage alone. Returns what prevented it."""
        if self.collector is None:
            return []
        unfinished = [record for record in search.records.values() if record.state == "interrupted"]
        try:
            late = self.collector.finish(unfinished, _HURRIED if search.interrupted else PATIENCE)
        except Exception as error:
            return [_logged(error)]
        return [] if late is None else [Fault(late, faults.INTERRUPTED)]


def _logged(error: BaseException) -> Fault:
    """Writes the error's traceback to sweep.log and returns its meaning."""
    if not isinstance(error, KeyboardInterrupt):
        logging.getLogger("sweep").error("the sweep was cut:", exc_info=error)
    return Fault.of(error)
