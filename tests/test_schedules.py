from collections.abc import Callable

import pytest
import torch
from torch.optim import lr_scheduler

from model.config import Schedule, members
from model.config.schedules import (
    AnySchedule,
    CosineSchedule,
    ExponentialSchedule,
    LinearSchedule,
    OneCycleSchedule,
    StepSchedule,
    WarmupStableDecaySchedule,
)

STEPS = 40
References = Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]


@pytest.mark.parametrize(
    ("schedule", "reference"),
    [
        (StepSchedule(milestones=(0.5, 0.8), gamma=0.3), lambda o: lr_scheduler.MultiStepLR(o, [20, 32], 0.3)),
        (ExponentialSchedule(final=0.01), lambda o: lr_scheduler.ExponentialLR(o, 0.01 ** (1 / STEPS))),
        (LinearSchedule(final=0.1), lambda o: lr_scheduler.LinearLR(o, 1, 0.1, STEPS)),
        (CosineSchedule(final=0.1), lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, 0.1)),
        (
            OneCycleSchedule(peak=0.25, initial=0.04, final=0.001),
            lambda o: lr_scheduler.OneCycleLR(
                o, 1.0, STEPS, pct_start=0.25, div_factor=25, final_div_factor=40, cycle_momentum=False
            ),
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_schedule_equals_torchs_own(schedule: Schedule, reference: References) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = reference(optimizer)
    for step in range(STEPS):
        assert schedule.factor(step, STEPS) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        theirs.step()


def test_notebooks_two_phases_are_one_milestone() -> None:
    schedule = StepSchedule(milestones=(0.75,), gamma=0.1)
    rates = [schedule.factor(step, 40) for step in range(40)]
    assert rates == [1.0] * 30 + [0.1] * 10


def test_warmup_stable_decay_stands_still_until_it_decays() -> None:
    schedule = WarmupStableDecaySchedule(warmup=0.1, decay=0.5, final=0.0)
    rates = [schedule.factor(step, 200) for step in range(200)]
    assert rates[:20] == sorted(rates[:20])
    assert set(rates[20:110]) == {1.0}
    assert rates[110:] == sorted(rates[110:], reverse=True)
    assert rates[-1] == pytest.approx(1 / 90)


@pytest.mark.parametrize("section", members(AnySchedule).values())
def test_every_schedule_stays_between_0_and_1_with_and_without_warmup(section: type[Schedule]) -> None:
    for warmup in (0.0, 0.3):
        schedule = section(warmup=warmup)
        for steps in (1, 2, 3, 50):
            assert all(0 <= schedule.factor(step, steps) <= 1 for step in range(steps))


def test_warmup_climbs_in_equal_steps_to_where_the_schedule_begins() -> None:
    rates = [CosineSchedule(warmup=0.2).factor(step, 50) for step in range(50)]
    assert rates[:11] == pytest.approx([(step + 1) / 11 for step in range(11)])
    assert rates[10] == 1


@pytest.mark.parametrize(
    ("schedule", "peak"),
    [
        (StepSchedule(), 0.0),
        (CosineSchedule(warmup=0.25), 0.25),
        (OneCycleSchedule(peak=0.5), 0.5),
        (OneCycleSchedule(peak=0.5, warmup=0.2), 0.6),
        (WarmupStableDecaySchedule(), 0.05),
    ],
)
def test_a_schedules_peak_is_where_its_rate_is_first_highest(schedule: Schedule, peak: float) -> None:
    assert schedule.progress_at_peak() == pytest.approx(peak, abs=0.002)
