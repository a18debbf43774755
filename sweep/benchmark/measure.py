"""Measures the parts of a sweep and compares them with the limits of this machine.

What is compared in a ratio is measured in turns within one run, so that a machine that is slow for a while slows down
both. Each ratio is the median over the rounds.
"""

import csv
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.config import CaptchaConfig, TrialConfig, override
from model.data.captchas import render
from model.data.pools import ensure_pools
from model.data.workers import prepare_process
from model.training.loop import LOG_POINTS
from sweep.benchmark.worker import Lane, Memory, RunningLane, sized
from sweep.config import SweepConfig, load
from sweep.execution import start_weights
from sweep.machine.resources import Allotment, Machine, allot, recommend, this_machine
from sweep.search.samplers import trial_count
from sweep.tensorboard.event_file import lifetime

EPOCH_SECONDS = 1.0  # of a measured epoch; a real one may take hours
STEP_SECONDS = EPOCH_SECONDS / 4  # longer steps are measured with smaller batches, to end within minutes
RENDERING_SECONDS = 0.3
ROUNDS = 4
TRIALS, TRIAL_SECONDS = 8, 30.0  # of the small sweep
EPOCHS, EPOCH_IMAGES = 3, 4_000  # of the small sweep's trials: minimum of epochs, maximum of images
# On a GPU all variants are measured, and the fastest is recommended.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"training.cuda_graph": False, "training.compile": False},
    "recorded network": {"training.cuda_graph": "network", "training.compile": False},
    "recorded step": {"training.cuda_graph": "step", "training.compile": False},
    "compiled network": {"training.cuda_graph": False, "training.compile": True},
    "compiled network, recorded step": {"training.cuda_graph": "step", "training.compile": True},
}
PLAIN_TRIALS, PLAIN_IMAGES = 8, 16_000
_ENOUGH = 0.7  # share of EPOCH_SECONDS to measure: a slightly faster epoch must not be followed by a second one

FIGURES = (
    "device",
    "trial_share_of_limit",
    "logging_share",
    "checkpoint_share",
    "speedup_over_notebook",
    "two_trials_speedup",
    "evaluation_over_training",
    "rendering_two_process_speedup",
    "sweep_overhead",
    "seconds_per_trial_overhead",
    "host_mb_per_trial",
    "speedup_over_plain_sweep",
)


@dataclass(frozen=True)
class Round:
    """One round of measurements in images per second: `rates` of one trial and its parts, `at_once` by the number of
    concurrent trials, `rendering` by the number of processes."""

    rates: dict[str, float]
    at_once: dict[int, float]
    rendering: dict[int, float]


class Rendering:
    """Measures rendering with one process, two, and one per core."""

    def __init__(self, captcha: CaptchaConfig, cores: int) -> None:
        self._captcha, self._counts = captcha, sorted({1, 2, cores})
        self._executor = ProcessPoolExecutor(self._counts[-1], initializer=prepare_process)
        self._rate(self._counts[-1], 20)  # starts the processes
        self._each = max(20, int(self._rate(1, 50) * RENDERING_SECONDS))

    def rates(self) -> dict[int, float]:
        return {count: self._rate(count, self._each) for count in self._counts}

    def _rate(self, processes: int, count: int) -> float:
        begin = time.monotonic()
        list(self._executor.map(_draw, [self._captcha] * processes, range(processes), [count] * processes))
        return processes * count / (time.monotonic() - begin)

    def close(self) -> None:
        self._executor.shutdown()


class Benchmark:
    """Measures one config, with files in `folder`. `figures` are for bench.json, None if not measured; `rows` are for
    the table. Raises ConfigError if a trial asks for more than the machine has."""

    def __init__(self, config: SweepConfig, folder: Path) -> None:
        self.config, self.trial, self.folder = config, config.trial(), folder
        self.machine: Machine = this_machine()
        self.allotment: Allotment = allot(config, self.machine, trials=10_000, local=False)
        self.gpu = self.allotment.gpus > 0
        start_weights.check(config, root=None)
        self.figures: dict[str, Any] = dict.fromkeys(FIGURES)
        self.figures["device"] = self.machine.gpu_name if self.gpu else f"CPU, {self.machine.cpus} cores"
        self.rows: list[tuple[str, str, str]] = []
        self._limit_over_bare = 1.0  # rate of the fastest variant's bare step ÷ rate of the measured variant's

    def row(self, what: str, figure: str, note: str = "") -> None:
        self.rows.append((what, figure, note))

    def trials(self) -> None:
        """Measures, in turns: one trial on a trial's resources, its parts, the baseline, several trials at once, and
        rendering."""
        with ExitStack() as closing:
            rendering = Rendering(self.config.drawn, self.machine.cpus)
            closing.callback(rendering.close)
            one_step = sized(self.trial, self.trial.training.batch_size, 1, 1)
            lanes = [self._lane(number, one_step, closing) for number in range(self._most_at_once)]
            small = self._small(lanes[0], one_step)
            ensure_pools(small, self.folder / "pools", self.machine.cpus)
            if small.training.batch_size < one_step.training.batch_size:
                lanes[0].close()  # a process never returns its memory: start a new one
                lanes[0] = self._lane(0, small, closing)
            if self.gpu:
                small = self._fastest(lanes, small, closing)
            _all(lanes, "use", small)
            graph = statistics.median(_all(lanes, "graph"))
            lanes[-1].call("rate", "trial", 0)  # in a process that has not trained yet, for its memory
            memory: Memory = lanes[-1].call("memory")
            if self.gpu:
                parts = lanes[-1].call("memory_parts")
                self.row("host memory of a trial", ", ".join(f"{name} {size:,.0f} MB" for name, size in parts.items()))
            for too_many in lanes[memory.fitting :]:
                too_many.close()
            del lanes[memory.fitting :]
            _all(lanes, "rate", "trial", 0)
            for stream in ("reading", "bare", "evaluation"):
                lanes[0].call("rate", stream, 0)
            rounds = [self._round(lanes, rendering) for _ in range(ROUNDS)]
            self._rendering([each.rendering for each in rounds])
            self._one([each.rates for each in rounds], lanes[0], graph)
            self._several([each.at_once for each in rounds], memory)

    def _small(self, lane: RunningLane, one_step: TrialConfig) -> TrialConfig:
        """The config's trial with epochs of about EPOCH_SECONDS, which logs as often per step as the original."""
        whole = batch = self.trial.training.batch_size
        lane.call("use", in_batches_of(1, one_step))
        lane.call("rate", "bare", 0)  # warm-up: the first step of a process is much slower
        lane.call("use", one_step)
        rate = lane.call("rate", "bare", 0)
        if whole / rate < 2 * EPOCH_SECONDS:  # for longer steps one measurement is enough
            rate = lane.call("rate", "bare", EPOCH_SECONDS / 2)
        while batch > 1 and batch / rate > STEP_SECONDS:
            batch //= 2
        if batch < whole:
            needed: Memory = lane.call("memory")
            cost = f"a step of {whole} takes about {whole / rate:.1f} s, its process {needed.host:,.0f} MB"
            self.row("measured in batches of", f"{batch}", cost)
            self.trial = in_batches_of(batch, self.trial)
        steps = max(1, round(rate * EPOCH_SECONDS / batch))
        every = math.ceil(self.trial.steps_per_epoch / max(1, LOG_POINTS // self.trial.training.epochs))
        return sized(self.trial, steps * batch, max(1, LOG_POINTS * every // steps), 1)

    def _fastest(self, lanes: list[RunningLane], small: TrialConfig, closing: ExitStack) -> TrialConfig:
        """Measures VARIANTS, adds a row for each, and uses the fastest from then on. Returns `small` with its settings.
        Raises RuntimeError if none runs."""
        bare: dict[str, float] = {}
        trial: dict[str, float] = {}
        for name, settings in VARIANTS.items():
            lane = lanes[0]
            try:
                lane.call("use", changed(small, settings))
                begin = time.monotonic()
                lane.call("rate", "bare", 0)  # records and compiles
                begun = time.monotonic() - begin
                bare_rate = lane.call("rate", "bare", EPOCH_SECONDS)
                lane.call("rate", "trial", 0)
                trial_rate = lane.call("rate", "trial", _ENOUGH * EPOCH_SECONDS)
            except RuntimeError as error:
                self.row(f"{name}: it failed", str(error)[:120])
                lane.close()  # a CUDA error may leave the process unusable: start a new one
                lanes[0] = self._lane(0, small, closing)
                continue
            bare[name], trial[name] = bare_rate, trial_rate
            note = f"a trial {trial_rate:,.0f} images/s, {trial_rate / bare_rate:.2f} of it; {begun:.1f} s to begin"
            self.row(f"{name}, bare step", f"{bare_rate:,.0f} images/s", note)
        if not trial:
            raise RuntimeError("no way of training runs on this GPU")
        best = max(trial, key=lambda name: trial[name])
        self._limit_over_bare = max(bare.values()) / bare[best]
        self.trial = changed(self.trial, VARIANTS[best])
        self.config = self.config.model_copy(update={"training": self.trial.training})
        chosen = ", ".join(f"{key.partition('.')[2]}: {str(value).lower()}" for key, value in VARIANTS[best].items())
        self.row("the fastest", best, f"training: {{{chosen}}}")
        return changed(small, VARIANTS[best])

    @property
    def _most_at_once(self) -> int:
        return 16 if self.gpu else max(1, int(self.machine.cpus / self.allotment.cpus))

    def _lane(self, number: int, config: TrialConfig, closing: ExitStack) -> RunningLane:
        ensure_pools(config, self.folder / "pools", self.machine.cpus)
        cpus: tuple[int, ...] = ()
        if not self.gpu and hasattr(os, "sched_getaffinity"):
            mine, each = sorted(os.sched_getaffinity(0)), self.allotment.threads
            cpus = tuple(mine[number * each : (number + 1) * each])
        folder = self.folder / f"lane-{number}"
        lane = RunningLane(
            Lane(config, self.folder / "pools", folder, self.allotment.threads, self.gpu, cpus, self.config.averages)
        )
        closing.callback(lane.close)
        return lane

    def _round(self, lanes: Sequence[RunningLane], rendering: Rendering) -> Round:
        """Measures one round. The limit (bare step) is measured before and after the trial and averaged, so that a
        machine that slows down affects both alike."""
        lane = lanes[0]
        before = lane.call("rate", "bare", EPOCH_SECONDS / 2)
        trial = lane.call("rate", "trial", _ENOUGH * EPOCH_SECONDS)
        after = lane.call("rate", "bare", EPOCH_SECONDS / 2)
        at_once = {1: trial}
        for count in sorted({min(2**power, len(lanes)) for power in range(5)} - {1}):
            at_once[count] = sum(_all(lanes[:count], "rate", "trial", _ENOUGH * EPOCH_SECONDS))
        others = {stream: lane.call("rate", stream, 0) for stream in ("evaluation", "plain")}
        reading = lane.call("rate", "reading", EPOCH_SECONDS / 5)
        rates = {"bare": (before + after) / 2, "trial": trial, **others, "reading": reading}
        return Round(rates, at_once, rendering.rates())

    def _rendering(self, rounds: Sequence[dict[int, float]]) -> None:
        for count in rounds[0]:
            ratios = [each[count] / each[1] for each in rounds]
            rates = images([each[count] for each in rounds])
            self.row(f"rendering, processes: {count}", rates, f"{times(ratios)} of one")
        self.figures["rendering_two_process_speedup"] = statistics.median(each[2] / each[1] for each in rounds)

    def _one(self, rounds: Sequence[dict[str, float]], lane: RunningLane, graph: float) -> None:
        """Adds figures and rows of one trial. `graph`: seconds to trace the network, once per process."""
        rates = {stream: [each[stream] for each in rounds] for stream in rounds[0]}
        ratios = {
            key: [each[over] / each[under] for each in rounds]
            for key, over, under in (
                ("trial_share_of_limit", "trial", "bare"),
                ("evaluation_over_training", "evaluation", "trial"),
                ("speedup_over_notebook", "trial", "plain"),
            )
        }
        ratios["trial_share_of_limit"] = [ratio / self._limit_over_bare for ratio in ratios["trial_share_of_limit"]]
        self.figures.update({key: statistics.median(values) for key, values in ratios.items()})
        training_images = self.config.steps_per_epoch * self.config.training.batch_size
        epoch = training_images / statistics.median(rates["trial"])
        epoch += self.config.data.valid_images / statistics.median(rates["evaluation"])
        trial_seconds = self.config.training.epochs * epoch
        traced = min(1.0, self.allotment.at_once / trial_count(self.config.search))  # share of trials that trace it
        logging = lane.call("logging", self.config.trial()) + graph * traced
        checkpoint, size = lane.call("checkpoint")
        self.figures["logging_share"] = logging / trial_seconds
        self.figures["checkpoint_share"] = checkpoint / 10
        self.row("reading a pool, batch to the device", images(rates["reading"]))
        self.row("the bare step on a batch that is there: the limit", images(rates["bare"]))
        self.row("a trial's epoch", images(rates["trial"]), f"{times(ratios['trial_share_of_limit'])} of the limit")
        self.row("the notebook's way", images(rates["plain"]), f"the trial is {times(ratios['speedup_over_notebook'])}")
        self.row(
            "evaluation", images(rates["evaluation"]), f"{times(ratios['evaluation_over_training'])} of training's rate"
        )
        self.row("TensorBoard logging", f"{logging:.2f} s a trial", f"{logging / trial_seconds:.2%} of its time")
        cost = f"{1000 * checkpoint:.0f} ms, {size / 1e6:.1f} MB"
        self.row("checkpoint", cost, f"{checkpoint / 10:.2%} of an epoch of 10 s")

    def _several(self, rounds: Sequence[dict[int, float]], memory: Memory) -> None:
        counts = list(rounds[0])
        totals = {count: [each[count] for each in rounds] for count in counts}
        if 2 in totals:
            self.figures["two_trials_speedup"] = statistics.median(each[2] / each[1] for each in rounds)
        self.figures["host_mb_per_trial"] = memory.host
        for count in counts:
            ratio = [each[count] / each[1] for each in rounds]
            needed = f"{count * memory.host:,.0f} MB"
            needed += f", {count * memory.device:,.0f} MB on the GPU" if self.gpu else ""
            self.row(f"{count} at once", images(totals[count]), f"{times(ratio)} of one; {needed}")
        running = min(self.allotment.at_once, TRIALS)  # trials of the small sweep
        known = max(count for count in counts if count <= running)
        self.rate_at_once = statistics.median(totals[known]) / running
        # The fewest trials within 2 % of the highest total rate, because each trial costs memory.
        best = max(statistics.median(rates) for rates in totals.values())
        count = next(count for count in counts if statistics.median(totals[count]) >= 0.98 * best)
        self.figures["recommended_trials_at_once"] = count
        share = f"gpus: {1 / count:g}" if self.gpu else f"cpus: {self.machine.cpus / count:g}"
        if self.gpu:
            recommend(self.config, self.machine.gpu_name, count)
        self.row("recommended", f"{count} at once", f"resources: {{{share}}}")

    def sweep(self) -> None:
        """Measures the overhead of a small sweep: its wall clock compared with its trials' own seconds ÷ slots. The
        images are rendered before."""
        slots = min(self.allotment.at_once, TRIALS)
        shown = TRIAL_SECONDS * self.rate_at_once
        epochs = max(EPOCHS, math.ceil(shown / EPOCH_IMAGES))
        each = max(self.trial.training.batch_size, math.ceil(shown / epochs))
        config = sized(self.trial, each, epochs, max(1, each // 100))
        ensure_pools(config, self.folder / "pools", self.machine.cpus)
        wall, root = self._run_sweep(config, TRIALS)
        with (root / "leaderboard.csv").open() as file:
            training = sum(float(row["seconds"]) for row in csv.DictReader(file)) / slots
        lifetimes = [lifetime(logs) for logs in (root / "tensorboard").iterdir() if logs.name != "_sweep"]
        busy = max(end for _, end in lifetimes) - min(start for start, _ in lifetimes)
        self.figures["sweep_overhead"] = wall / training - 1
        self.figures["seconds_per_trial_overhead"] = (busy - training) * slots / TRIALS
        self.row(
            f"a sweep of {TRIALS} trials of {training * slots / TRIALS:.0f} s, {slots} at once",
            f"{wall:.1f} s",
            f"{wall / training - 1:.1%} more than its training: {wall - busy:.1f} s for start and end, "
            f"{(busy - training) * slots / TRIALS:.1f} s a trial",
        )

    def _run_sweep(self, config: TrialConfig, trials: int) -> tuple[float, Path]:
        """Runs a sweep with `trials` random trials and no early stopping. Returns its wall clock in seconds and its
        folder. Raises RuntimeError if it fails."""
        search = {"search.searcher": "random", "search.early_stopping": "none", "search.trials": trials}
        (self.folder / "config.yaml").write_text(self.config.yaml, "utf-8")
        tree = load(self.folder / "config.yaml", {**search, "confirm": None}).model_dump()
        tree.update(config.model_dump())
        # Explicit shares: the sweep uses another cache, in which `auto` would find no recommendation.
        tree["resources"] = {"cpus": self.allotment.cpus, "gpus": self.allotment.gpus}
        (self.folder / "sweep.yaml").write_text(SweepConfig.model_validate(tree).yaml, "utf-8")
        name = f"sweep-{time.monotonic_ns()}"
        places = ["--output-dir", str(self.folder), "--cache-dir", str(self.folder / "pools"), "--name", name]
        command = [sys.executable, "-m", "sweep.run", "--config", str(self.folder / "sweep.yaml"), "--quiet", *places]
        begin = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the sweep ended with exit code {done.returncode}: {done.stderr or done.stdout}")
        return time.monotonic() - begin, self.folder / name

    def plain_sweep(self) -> None:
        """Compares a whole sweep with the baseline under Ray Tune's defaults. Both have to render their images."""
        images_each = max(1, PLAIN_IMAGES // 5)
        config = sized(self.config.trial(), images_each, 5, self.config.data.valid_images)
        done = PLAIN_TRIALS * 5 * images_each
        ours, _ = self._run_sweep(config, PLAIN_TRIALS)
        (self.folder / "plain.json").write_text(config.model_dump_json(), "utf-8")
        arguments = [str(self.folder / "plain.json"), str(PLAIN_TRIALS), str(self.allotment.gpus), str(self.folder)]
        begin = time.monotonic()
        subprocess.run([sys.executable, "-m", "sweep.benchmark.baseline", *arguments], capture_output=True, check=True)
        theirs = time.monotonic() - begin
        self.figures["speedup_over_plain_sweep"] = theirs / ours
        self.row(
            f"a sweep of {PLAIN_TRIALS} trials × {5 * images_each:,} images",
            f"{done / ours:,.0f} images/s",
            f"{theirs / ours:.2f} × the same written plainly ({done / theirs:,.0f} images/s)",
        )


def _all(lanes: Sequence[RunningLane], what: str, *arguments: Any) -> list[Any]:
    """Asks all lanes the same question at once, and returns their answers."""
    for lane in lanes:
        lane.ask(what, *arguments)
    return [lane.answer() for lane in lanes]


def changed(config: TrialConfig, settings: Mapping[str, Any]) -> TrialConfig:
    return TrialConfig.model_validate(override(config.model_dump(), settings))


def in_batches_of(images: int, config: TrialConfig) -> TrialConfig:
    return changed(config, {"training.batch_size": images})


def _draw(captcha: CaptchaConfig, seed: int, count: int) -> None:
    for index in range(count):
        render(captcha, seed, "train", index)


def images(rates: Sequence[float]) -> str:
    return f"{statistics.median(rates):,.0f} images/s"


def times(ratios: Sequence[float]) -> str:
    """The ratios as text: median (least … most)."""
    return f"{statistics.median(ratios):.2f} × ({min(ratios):.2f} … {max(ratios):.2f})"
