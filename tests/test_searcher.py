import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from model.system.seeds import derive
from sweep.config import Asha, ConfigError, SweepConfig, load
from sweep.search import samplers
from sweep.search.early_stopping import is_rung
from sweep.search.points import identity, point, size
from sweep.search.records import TrialRecord, record_of, trial_name
from sweep.search.samplers import OBSERVED, SAMPLERS, Observed, limit, trial_count
from sweep.search.search import Search, mean_test_error
from sweep.tensorboard.hparams import hparams
from sweep.verdict.leaderboard import table
from tests.conftest import QUICKSTART
from tests.processes import UNCONFIRMED


def config(**settings: Any) -> SweepConfig:
    return load(QUICKSTART, UNCONFIRMED | {key.replace("__", "."): value for key, value in settings.items()})


def result(epoch: int, loss: float, state: str = "running") -> dict[str, Any]:
    scores = {"error_rate": loss, "cer": loss, "loss": loss}
    return {
        "state": state,
        "epochs": epoch,
        "best_epoch": epoch,
        "scores": scores,
        "rung_score": loss,
    }


def run(search: Search, loss_of: Callable[[TrialRecord, int], float]) -> list[TrialRecord]:
    while (record := search.ask()) is not None:
        epoch, go_on = 0, True
        while go_on:
            epoch += 1
            state = "completed" if epoch == search.epochs else "running"
            told = result(epoch, loss_of(record, epoch), state)
            if record.replicate_of and state == "completed":
                told["test_error_rate"] = told["scores"]["error_rate"]
            go_on = search.report(record.number, told)
    return list(search.records.values())


def test_lost_nodes_are_counted_apart_from_a_trials_own_failures(tmp_path: Path) -> None:
    few = {"search__trials": 1, "search__max_failures": 1, "search__max_node_losses": 2}
    search = Search(config(**few), tmp_path / "study.db")
    for node_lost, left in ((True, True), (False, True), (True, True), (True, False)):
        record = search.ask()
        assert record is not None
        search.fail(record.number, "lost", node_lost=node_lost)
        assert search.exhausted != left
    assert search.records[0].state == "failed"
    assert (search.records[0].failures, search.records[0].node_losses) == (1, 2)


def test_the_work_for_a_trial_does_not_grow_with_the_trials_before_it() -> None:
    trials, calls, after = 300, 0, list[int]()

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    settings = {"search__searcher": "random", "search__trials": trials, "training__epochs": 2}
    stopping = {"name": "asha", "grace_epochs": 1, "reduction_factor": 2}
    search = Search(config(**settings, search__early_stopping=stopping), None)
    while (record := search.ask()) is not None:
        sys.setprofile(count if record.number in (*range(10, 30), *range(trials - 20, trials)) else None)
        for epoch in (1, 2):  # all pass the rung, so that each trial has the same to do
            search.report(
                record.number, result(epoch, 1 - record.number / 1000, "running" if epoch < 2 else "completed")
            )
        after.append(calls)
    sys.setprofile(None)
    first, last = after[28] - after[10], after[-2] - after[trials - 20]
    assert first > 0
    assert last < 1.02 * first


@pytest.mark.parametrize("searcher", ["random", "tpe", "cmaes"])
def test_the_study_in_memory_is_the_one_in_the_file(tmp_path: Path, searcher: str) -> None:
    space = {"optimizer.lr": {"loguniform": [1e-4, 1e-2]}, "optimizer.weight_decay": {"uniform": [0.0, 0.1]}}
    stopping = {"name": "asha", "grace_epochs": 1, "reduction_factor": 2}
    settings = {"search__space": space, "search__searcher": searcher, "search__trials": 12}
    search = Search(config(**settings, search__early_stopping=stopping), tmp_path / "study.db")
    run(search, lambda record, epoch: record.number * 7 % 5 / 10 + 0.1 / epoch)

    def facts(study: optuna.Study) -> list[Any]:
        return [
            (
                trial.number, trial.state, trial.values, trial.params, trial.distributions, trial.intermediate_values,
                trial.system_attrs, record_of(trial),
            )
            for trial in study.trials
        ]  # fmt: skip

    file = optuna.load_study(study_name="sweep", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert facts(search._study) == facts(file)
    assert {trial.state for trial in file.trials} == {TrialState.COMPLETE, TrialState.PRUNED}


def test_tpe_draws_what_optunas_own_draws_in_spaces_of_which_each_trial_has_a_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def drawn() -> list[Any]:
        search = Search(config(search__searcher="tpe", search__trials=30, search__seed=4), None)
        return [record.values for record in run(search, lambda record, epoch: record.number * 7 % 5 / 10 + 0.1 / epoch)]

    ours = drawn()
    assert len({tuple(values) for values in ours}) > 1
    monkeypatch.setattr(samplers, "_QuickTPE", samplers.TPESampler)
    assert drawn() == ours


def ended_trial(number: int, value: float) -> FrozenTrial:
    trial = optuna.trial.create_trial(state=TrialState.COMPLETE, value=value)
    trial.number = number
    return trial


def test_tpe_sees_all_trials_of_a_small_sweep_and_the_best_and_newest_of_a_large_one() -> None:
    trials, observed = list[FrozenTrial](), Observed()
    for number in range(OBSERVED + 200):
        if number == OBSERVED:
            assert observed.among(trials, [3]) is trials
        trials.append(ended_trial(number, value=float((number * 7919) % 10_007)))
        observed.add(trials[-1])
    running = optuna.trial.create_trial(state=TrialState.RUNNING)
    running.number = len(trials)
    shown = observed.among([*trials, running], [running.number])
    numbers = [trial.number for trial in shown]
    best = sorted(trials, key=lambda trial: trial.values)[:25]  # as many as TPE draws from
    assert len(shown) == OBSERVED + 1
    assert numbers == sorted(numbers)
    assert {trial.number for trial in best} <= set(numbers)
    assert numbers[-501:] == list(range(len(trials) - 500, len(trials) + 1))


def test_a_trials_states_reach_optuna(tmp_path: Path) -> None:
    search = Search(config(search__trials=5, search__max_failures=0), tmp_path / "study.db")
    for outcome in ("completed", "diverged", "failed", "lost"):
        record = search.ask()
        assert record is not None
        if outcome == "lost":
            search.fail(record.number, "killed")
        else:
            more = {"state": outcome, "error": f"was {outcome}", "out_of_memory": False}
            search.report(record.number, result(1, 0.5) | more)
    last = search.ask()
    assert last is not None
    search.interrupt()
    assert [record.state for record in search.records.values()] == [
        "completed",
        "diverged",
        "failed",
        "failed",
        "interrupted",
    ]
    assert search.records[3].error == "killed"
    assert search.exit_code == 130
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 'study.db'}")
    states = [TrialState.COMPLETE, TrialState.FAIL, TrialState.FAIL, TrialState.FAIL, TrialState.RUNNING]
    assert [trial.state for trial in study.trials] == states


def test_a_halted_search_is_exhausted_as_soon_as_the_other_trials_have_reported(tmp_path: Path) -> None:
    search = Search(config(search__trials=4, search__early_stopping="none"), tmp_path / "study.db")
    for _ in range(3):
        assert search.ask() is not None
    search.report(0, {"state": "interrupted", "error": "the disk is full"})
    assert (search.ask(), search.exhausted) == (None, False)
    assert not search.report(1, result(1, 0.5))
    assert not search.exhausted
    search.fail(2, "its process was lost")
    assert search.exhausted
    search.interrupt()
    assert [record.state for record in search.records.values()] == ["interrupted"] * 3
    again = Search(config(search__trials=4, search__early_stopping="none"), tmp_path / "study.db")
    assert [record.epochs for record in (again.ask(), again.ask(), again.ask()) if record] == [0, 1, 0]


@pytest.mark.parametrize(
    ("schedule", "blank", "goes_on"),
    [
        ({"schedule.name": "onecycle", "schedule.peak": 0.5}, 1.0, True),
        ({"schedule.name": "onecycle", "schedule.peak": 0.5}, 0.2, False),  # it has left the plateau, and reads badly
        ({"schedule.name": "onecycle", "schedule.peak": 0.2}, 1.0, False),  # its highest rate has passed
        ({"schedule.name": "constant", "schedule.warmup": 0.5}, 1.0, True),
        ({"schedule.name": "constant"}, 1.0, False),
    ],
)
@pytest.mark.parametrize("stopping", ["asha", "median"])
def test_early_stopping_spares_a_trial_on_the_plateau_until_its_schedules_peak(
    schedule: dict[str, Any], blank: float, goes_on: bool, stopping: str
) -> None:
    more = {"reduction_factor": 2} if stopping == "asha" else {"startup_trials": 1}
    search = Search(
        config(
            training__epochs=6,
            search__trials=2,
            search__early_stopping={"name": stopping, "grace_epochs": 2, **more},
            search__space={"optimizer.lr": {"loguniform": [1e-4, 1e-2]}},
            **{key.replace(".", "__"): value for key, value in schedule.items()},
        ),
        None,
    )
    good, bad = (search.ask() for _ in range(2))
    assert good is not None
    assert bad is not None
    for epoch in range(1, 7):
        assert search.report(good.number, result(epoch, 0.1, "running" if epoch < 6 else "completed")) is (epoch < 6)
    wrong = {"scores": {"error_rate": 1.0, "cer": 1.0, "loss": 2.7}, "rung_score": 2.7, "blank_share": blank}
    assert search.report(bad.number, result(1, 1.0) | wrong)
    assert search.report(bad.number, result(2, 1.0) | wrong) is goes_on
    if goes_on:  # not for ever
        assert search.report(bad.number, result(3, 1.0) | wrong)
        assert not search.report(bad.number, result(4, 1.0) | wrong)
    assert search.records[bad.number].state == "stopped"


def test_asha_keeps_the_best_half_of_those_seen_at_a_rung_and_says_so_to_optuna(tmp_path: Path) -> None:
    asha = {"name": "asha", "grace_epochs": 2, "reduction_factor": 2}
    settings = {"search__trials": 4, "search__early_stopping": asha, "search__space": NUMBERS}
    search = Search(config(**settings), tmp_path / "study.db")
    losses = {0: 0.5, 1: 0.9, 2: 0.4, 3: 0.45}
    records = run(search, lambda record, epoch: losses[record.number] - 0.01 * epoch)
    # Rung 2: 0 passes alone; 1 is the worse of two; 2 is the best of three; 3 is the second of four.
    # Rung 4: 0 passes alone; 2 is the best of two; 3 is the second of three, of which ⌈3 / 2⌉ stay.
    assert [(record.state, record.epochs) for record in records] == [
        ("completed", 6),
        ("stopped", 2),
        ("completed", 6),
        ("completed", 6),
    ]
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "COMPLETE", "COMPLETE"]


def test_a_stopped_trial_is_confirmed_after_those_that_ran_to_their_end() -> None:
    stopping = {"name": "asha", "grace_epochs": 1, "reduction_factor": 2}
    few = {"search__trials": 3, "search__early_stopping": stopping, "confirm": {"top": 2, "seeds": 1}}
    points = [{"optimizer.lr": rate, "schedule.name": "constant"} for rate in (1e-4, 1e-3, 1e-2)]
    search = Search(confirming(search__points=points, **few), None)
    for rung_score, error in ((0.1, 0.3), (0.9, 0.2), (0.05, 0.4)):  # the second is stopped, and scored best until then
        record, epoch, goes_on = search.ask(), 0, True
        assert record is not None
        while goes_on:
            epoch += 1
            told = result(epoch, error, "completed" if epoch == search.epochs else "running")
            goes_on = search.report(record.number, told | {"rung_score": rung_score})
    assert [record.state for record in search.records.values()] == ["completed", "stopped", "completed"]
    for original in (0, 2):
        replicate = search.ask()
        assert replicate is not None
        assert replicate.replicate_of == search.records[original].name


def test_what_is_nearly_the_same_as_a_better_config_is_confirmed_last() -> None:
    points = [
        {"optimizer.lr": 1e-3, "schedule.name": "constant"},
        {"optimizer.lr": 1.2e-3, "schedule.name": "constant"},
        {"optimizer.lr": 1e-2, "schedule.name": "constant"},
        {"optimizer.lr": 1e-3, "schedule.name": "step", "schedule.gamma": 0.1},
    ]
    few = {"search__points": points, "search__trials": 4}
    for top, expected in ((3, [0, 2, 3]), (4, [0, 2, 3, 1])):
        search = Search(confirming(confirm={"top": top, "seeds": 1}, **few), None)
        records = run(search, lambda record, epoch: 0.1 * (1 + record.number))
        assert [record.replicate_of for record in records[4:]] == [records[number].name for number in expected]


@pytest.mark.parametrize(("grace", "factor", "rungs"), [(1, 2, [1, 2, 4, 8]), (2, 3, [2, 6]), (3, 2, [3, 6])])
def test_rungs_lie_at_grace_times_powers_of_the_factor(grace: int, factor: int, rungs: list[int]) -> None:
    asha = Asha(grace_epochs=grace, reduction_factor=factor)
    assert [epoch for epoch in range(1, 10) if is_rung(epoch, asha)] == rungs


def test_median_stops_what_is_worse_than_the_earlier_ones() -> None:
    median = {"name": "median", "grace_epochs": 2, "startup_trials": 2}
    search = Search(config(search__trials=4, search__early_stopping=median), None)
    records = run(search, lambda record, epoch: [0.2, 0.3, 0.9, 0.1][record.number])
    assert [(r.state, r.epochs) for r in records] == [
        ("completed", 6),
        ("completed", 6),
        ("stopped", 2),
        ("completed", 6),
    ]


def test_a_trial_has_only_the_parameters_of_its_own_choice() -> None:
    records = run(Search(config(search__trials=30, search__searcher="random"), None), lambda r, e: 0.5)
    own = {"constant": set(), "step": {"schedule.gamma"}, "cosine": {"schedule.final"}, "onecycle": {"schedule.peak"}}
    assert {record.values["schedule.name"] for record in records} == set(own)
    for record in records:
        extra = set(record.values) - {"optimizer.lr", "schedule.name"}
        assert extra == own[str(record.values["schedule.name"])]
        assert 1e-4 <= float(record.values["optimizer.lr"]) <= 3e-2


NUMBERS = {"optimizer.lr": {"loguniform": [1e-4, 1e-1]}, "network.dropout": {"uniform": [0, 0.5]}}


@pytest.mark.parametrize("name", ["tpe", "random", "qmc", "cmaes"])
def test_a_searcher_repeats_itself_from_its_seed_and_differs_with_another(name: str) -> None:
    def values(seed: int) -> list[Any]:
        settings = {"search.space": NUMBERS, "search.searcher": name, "search.trials": 12, "search.seed": seed}
        search = Search(load(QUICKSTART, UNCONFIRMED | settings), None)
        return [r.values for r in run(search, lambda r, e: abs(float(r.values["optimizer.lr"]) - 0.01))]

    assert set(SAMPLERS) == {"tpe", "random", "grid", "qmc", "cmaes"}
    assert values(0) == values(0)
    assert values(0) != values(1)
    assert len({value["optimizer.lr"] for value in values(0)}) == 12


@pytest.mark.parametrize("name", ["tpe", "random", "qmc", "cmaes"])
def test_neighbouring_seeds_share_no_point(name: str) -> None:
    def rates(seed: int) -> set[float]:
        settings = {"search.space": NUMBERS, "search.searcher": name, "search.trials": 12, "search.seed": seed}
        search = Search(load(QUICKSTART, UNCONFIRMED | settings), None)
        return {r.values["optimizer.lr"] for r in run(search, lambda r, e: abs(r.values["optimizer.lr"] - 0.01))}

    drawn = [rates(seed) for seed in range(4)]
    assert len(set.union(*drawn)) == 48


def test_replicates_of_neighbouring_training_seeds_share_no_seed() -> None:
    def seeds(seed: int) -> set[int]:
        records = run(Search(confirming(training__seed=seed), None), lucky_once)
        return {record.values["training.seed"] for record in records if record.replicate_of}

    assert [len(seeds(seed)) for seed in (0, 1)] == [3, 3]
    assert not seeds(0) & seeds(1)
    assert not (seeds(0) | seeds(1)) & {0, 1, 2, 3}


def test_derived_seeds_differ_by_every_part_of_their_path() -> None:
    paths = [(seed, *rest) for seed in range(20) for rest in ((0,), (1,), (0, 0), (0, 1), (1, 0), (2**40,))]
    assert len({derive(*path) for path in paths}) == len(paths)
    assert derive(3, 1) == derive(3, 1)


def test_tpe_finds_better_rates_than_chance() -> None:
    def mean_distance(name: str, seed: int) -> float:
        settings = {"search.space": NUMBERS, "search.searcher": name, "search.trials": 40, "search.seed": seed}
        search = Search(load(QUICKSTART, {**UNCONFIRMED, **settings, "search.early_stopping": "none"}), None)
        return sum(r.score("loss") for r in run(search, lambda r, e: abs(float(r.values["optimizer.lr"]) - 0.05))[20:])

    tpe, chance = (sum(mean_distance(name, seed) for seed in range(4)) for name in ("tpe", "random"))
    assert tpe < 0.8 * chance


def test_grid_runs_every_combination_once_with_the_parameters_of_each_choice() -> None:
    space = {
        "optimizer.lr": {"grid": [0.1, 0.01]},
        "schedule.name": {"choice": {"constant": None, "step": {"schedule.gamma": {"grid": [0.1, 0.5]}}}},
    }
    grid = config(search__space=space, search__searcher="grid", search__trials=None)
    assert trial_count(grid.search) == 6
    records = run(Search(grid, None), lambda r, e: 0.5)
    assert [record.values for record in records] == [
        {"optimizer.lr": rate, **rest}
        for rate in (0.1, 0.01)
        for rest in (
            {"schedule.name": "constant"},
            {"schedule.name": "step", "schedule.gamma": 0.1},
            {"schedule.name": "step", "schedule.gamma": 0.5},
        )
    ]
    fewer = config(search__space=space, search__searcher="grid", search__trials=4)
    assert len(run(Search(fewer, None), lambda r, e: 0.5)) == 4


CONDITIONAL = {
    "network.encoder.layers": {"int": [1, 2]},
    "schedule.name": {"choice": {"constant": None, "step": {"schedule.gamma": {"choice": [0.1, 0.5, 0.9]}}}},
    "optimizer.gradient_clip": {"choice": {None: None, 1.0: {"training.seed": {"int": [4, 5]}}}},
}  # 2 × (1 + 3) × (1 + 2) points


@pytest.mark.parametrize("name", ["tpe", "random", "qmc", "grid"])
@pytest.mark.parametrize(
    ("space", "count"),
    [
        ({"optimizer.name": {"choice": ["adam", "sgd"]}}, 2),
        ({"optimizer.lr": {"loguniform": [0.1, 0.1]}, "network.encoder.layers": {"int": [1, 3]}}, 3),
        (CONDITIONAL, 24),
    ],
    ids=["one choice", "whole numbers", "conditional"],
)
def test_a_finite_space_is_tried_exhaustively_without_repeats_and_then_ends(
    name: str, space: dict[str, Any], count: int, tmp_path: Path
) -> None:
    if name == "grid" and "optimizer.lr" in space:
        space = {"network.encoder.layers": {"grid": [1, 2, 3]}}
    if name == "grid":
        space = {p: {"grid": [1, 2]} if p == "network.encoder.layers" and count == 24 else d for p, d in space.items()}
        if count == 24:
            space["optimizer.gradient_clip"] = {"choice": {None: None, 1.0: {"training.seed": {"grid": [4, 5]}}}}
    wanted = config(search__space=space, search__searcher=name, search__trials=30)
    assert size(wanted.search.space) == trial_count(wanted.search) == count
    assert limit(wanted.search) == f"the search space has {count} points: {count} trials, not 30"
    first = Search(wanted, tmp_path / "study.db")
    for _ in range(count // 2):
        record = first.ask()
        assert record is not None
        first.report(record.number, result(1, 0.5, "completed"))
    records = run(Search(wanted, tmp_path / "study.db"), lambda record, epoch: 0.5 + record.number / 1000)
    assert len({identity(record.values) for record in records}) == len(records) == count
    all_points = [point(wanted.search.space, index) for index in range(count)]
    assert {identity(record.values) for record in records} == set(map(identity, all_points))
    assert limit(config(search__space=space, search__searcher=name, search__trials=count).search) is None


def test_a_given_point_of_a_grid_is_not_tried_again() -> None:
    space = {"optimizer.lr": {"grid": [0.1, 0.01, 0.001]}, "optimizer.name": {"grid": ["adam", "sgd"]}}
    points = [{"optimizer.lr": 0.01, "optimizer.name": "sgd"}, {"optimizer.lr": 0.1}]
    grid = config(search__space=space, search__searcher="grid", search__trials=None, search__points=points)
    records = run(Search(grid, None), lambda record, epoch: 0.5)
    assert records[0].values == points[0]
    assert records[1].values["optimizer.lr"] == 0.1
    assert len({identity(record.values) for record in records}) == len(records) == 6


def test_a_grid_of_billions_of_points_is_counted_and_begun_at_once() -> None:
    rates = [round(0.05 * step, 2) for step in range(1, 11)]
    ten = {
        path: {"grid": rates}
        for path in ("optimizer.lr", "optimizer.weight_decay", "optimizer.momentum", "optimizer.gradient_clip")
    }
    ten |= {path: {"grid": rates} for path in ("network.dropout", "schedule.warmup", "training.augmentation.color")}
    ten |= {path: {"grid": list(range(1, 11))} for path in ("training.seed", "training.augmentation.shift")}
    grid = config(search__space=ten, search__searcher="grid", search__trials=12)
    begin = time.monotonic()
    records = run(Search(grid, None), lambda record, epoch: 0.5)
    assert time.monotonic() - begin < 60  # trying them all would take days
    assert [record.values["training.augmentation.shift"] for record in records] == [*range(1, 11), 1, 2]
    assert [record.values["training.seed"] for record in records] == [1] * 10 + [2] * 2
    assert trial_count(config(search__space=ten, search__searcher="grid", search__trials=None).search) == 10**9


def test_null_and_lists_are_tried_named_and_known_again(tmp_path: Path) -> None:
    space = {
        "optimizer.gradient_clip": {"choice": [None, 1.0]},
        "network.channels": {"choice": [[16, 32, 48, 64, 64], [8, 8, 8, 8, 8]]},
    }
    points = [{"optimizer.gradient_clip": None, "network.channels": [8, 8, 8, 8, 8]}]
    wanted = config(search__space=space, search__points=points, search__trials=4)
    records = run(Search(wanted, tmp_path / "study.db"), lambda record, epoch: 0.1 + record.number / 10)
    assert records[0].name == "0000_gradient_clip=null_channels=8-8-8-8-8"
    assert {record.values["network.channels"] for record in records} == {(16, 32, 48, 64, 64), (8, 8, 8, 8, 8)}
    assert wanted.with_values(records[0].values).network.channels == (8, 8, 8, 8, 8)
    assert wanted.with_values(records[0].values).optimizer.gradient_clip is None
    assert Search(wanted, tmp_path / "study.db").records == {record.number: record for record in records}
    columns, rows = table(records[:1], wanted.search.space)
    assert dict(zip(columns, rows[0], strict=True))["network.channels"] == "[8, 8, 8, 8, 8]"
    assert dict(zip(columns, rows[0], strict=True))["optimizer.gradient_clip"] == "null"
    assert hparams(wanted.search.space, {"optimizer.gradient_clip": 1.0}) == {"optimizer.gradient_clip": "1.0"}


def test_a_point_sets_the_only_choice_that_its_value_stands_below() -> None:
    points = [{"schedule.gamma": 0.2}, {"schedule.peak": 0.3, "schedule.name": "onecycle"}]
    records = run(Search(config(search__trials=2, search__points=points), None), lambda r, e: 0.5)
    assert [record.values["schedule.name"] for record in records] == ["step", "onecycle"]
    assert records[0].values["schedule.gamma"] == 0.2
    shared = {"choice": {name: {"schedule.final": {"uniform": [0, high]}} for name, high in FINALS.items()}}
    for value, name in ((0.05, None), (0.3, "cosine")):
        more = {"search__space": {"schedule.name": shared}, "search__points": [{"schedule.final": value}]}
        if name is None:  # both may have it
            with pytest.raises(ConfigError, match=r"schedule\.final together with schedule\.name: linear or"):
                config(**more)
        else:
            assert run(Search(config(**more, search__trials=1), None), lambda r, e: 0.5)[0].values == {
                "schedule.name": name,
                "schedule.final": value,
            }


FINALS = {"linear": 0.1, "cosine": 0.5}


def test_given_points_come_first_and_may_be_partial() -> None:
    points = [{"optimizer.lr": 0.002, "schedule.name": "cosine", "schedule.final": 0.1}, {"schedule.name": "step"}]
    records = run(Search(config(search__trials=3, search__points=points), None), lambda r, e: 0.5)
    assert records[0].values == points[0]
    assert records[1].values["schedule.name"] == "step"


def test_names_are_safe_unique_by_number_and_at_most_80_characters() -> None:
    assert trial_name(7, {"optimizer.lr": 0.0012, "schedule.name": "cosine"}) == "0007_lr=1.2e-03_schedule=cosine"
    draw = random.Random(0)
    for number in range(50):
        values = {f"a.{'k' * draw.randint(1, 9)}{i}": "ü/ \n../x" * draw.randint(1, 3) for i in range(9)}
        name = trial_name(number, values)  # type: ignore[arg-type]
        assert len(name) <= 80
        assert all(c.isascii() and (c.isalnum() or c in "._=+-") for c in name)
        assert name.startswith(f"{number:04d}")


def confirming(**settings: Any) -> SweepConfig:
    few = {"confirm": {"top": 2, "seeds": 3}, "search__trials": 6, "search__early_stopping": "none"}
    return config(**few | settings)


def lucky_once(record: TrialRecord, epoch: int) -> float:
    """Trial 4 looks best with the search's seed; with any other trial 1 is."""
    seed = record.values.get("training.seed", 0)
    number = record.number if record.replicate_of is None else int(record.replicate_of[:4])
    return {4: 0.01 if seed == 0 else 0.5, 1: 0.02}.get(number, 0.3 + 0.1 * number)


def test_the_best_configs_are_trained_again_with_fresh_seeds_and_the_best_of_those_wins(tmp_path: Path) -> None:
    search = Search(confirming(), tmp_path / "study.db")
    records = run(search, lucky_once)
    replicates = records[6:]
    names = [records[4].name, records[1].name]
    assert [record.replicate_of for record in replicates] == names * 3
    seeds = [record.values["training.seed"] for record in replicates]
    assert seeds[::2] == seeds[1::2]
    assert len({0, *seeds}) == 4
    for record in replicates:
        (original,) = [other for other in records if other.name == record.replicate_of]
        assert record.values == {**original.values, "training.seed": record.values["training.seed"]}
        assert record.name.endswith(f"_seed={record.values['training.seed']}")
    assert [record.number for record in search.confirmed] == [1, 4]
    assert search.ranked()[0] == search.best == records[1]
    assert search.ranked()[1] == records[4]
    assert search.exit_code == 0


def test_early_stopping_neither_stops_a_replicate_nor_learns_from_one(tmp_path: Path) -> None:
    stopping = {"name": "asha", "grace_epochs": 1, "reduction_factor": 4}
    search = Search(confirming(search__early_stopping=stopping), None)
    records = run(search, lambda record, epoch: record.number + 1.0)
    assert {record.state for record in records[:6]} == {"completed", "stopped"}
    assert {record.state for record in records[6:]} == {"completed"}
    assert all(not trial.intermediate_values for trial in search._study.get_trials()[6:])


def test_a_diverged_replicate_counts_as_reading_nothing_and_a_failed_one_not_at_all() -> None:
    def replicate(**known: Any) -> TrialRecord:
        return TrialRecord(9, "0009", {}, replicate_of="0001", **known)

    good = replicate(state="completed", test_error_rate=0.2)
    assert mean_test_error([good, replicate(state="diverged")]) == pytest.approx(0.6)
    assert mean_test_error([good, replicate(state="failed")]) == pytest.approx(0.2)
    assert mean_test_error([replicate(state="failed")]) == float("inf")


def test_a_confirmation_that_was_cut_goes_on_and_more_trials_are_confirmed_in_their_turn(tmp_path: Path) -> None:
    whole = run(Search(confirming(), None), lucky_once)
    cut = Search(confirming(), tmp_path / "study.db")
    for record in iter(cut.ask, None):
        if record.number == 8:
            break
        for epoch in range(1, cut.epochs + 1):
            state = "completed" if epoch == cut.epochs else "running"
            loss = lucky_once(record, epoch)
            cut.report(record.number, result(epoch, loss, state) | {"test_error_rate": loss})
    cut.interrupt()
    assert cut.interrupted
    assert not cut.confirmed
    again = Search(confirming(), tmp_path / "study.db")
    assert [record.name for record in run(again, lucky_once)] == [record.name for record in whole]
    more = Search(confirming(search__trials=8), tmp_path / "study.db")
    records = run(more, lambda record, epoch: 0.001 if int((record.replicate_of or record.name)[:4]) == 13 else 0.9)
    assert [record.replicate_of is None for record in records[12:14]] == [True, True]
    assert [record.replicate_of for record in records[14:]] == [records[13].name] * 3
    assert more.confirmed[0] == records[13]
