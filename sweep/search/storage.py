"""Optuna storages in memory: one that writes each change to the study's file, and one that holds a trial being drawn.

Optuna's own storage of a database asks the database again for each question, and a study that is made of another
study's trials copies them deeply. Both would cost more with each trial of a sweep.
"""

from collections.abc import Container, Sequence
from typing import Any

from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState


class WrittenThrough(InMemoryStorage):
    """Keeps the one study of `file` in memory: each change is written to the file first, and only memory is read.
    Nobody else may change the file meanwhile."""

    def __init__(self, file: BaseStorage) -> None:
        super().__init__()
        self._file = file
        self._study = -1  # these are the file's ids: of the study,
        self._trials: list[int] = []  # and of its trials by their ids in memory, which are their numbers
        for study in file.get_all_studies():
            self._study = study._study_id
            known = super().create_new_study(study.directions, study.study_name)
            for key, value in study.user_attrs.items():
                super().set_study_user_attr(known, key, value)
            for trial in file.get_all_trials(self._study, deepcopy=False):
                self._trials.append(trial._trial_id)
                super().create_new_trial(known, trial)

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        if self._study < 0:
            self._study = self._file.create_new_study(directions, study_name)
        return super().create_new_study(directions, study_name)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._file.set_study_user_attr(self._study, key, value)
        super().set_study_user_attr(study_id, key, value)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        self._trials.append(self._file.create_new_trial(self._study, template_trial))
        return super().create_new_trial(study_id, template_trial)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        self._file.set_trial_state_values(self._trials[trial_id], state, values)
        return super().set_trial_state_values(trial_id, state, values)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self._file.set_trial_intermediate_value(self._trials[trial_id], step, intermediate_value)
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._file.set_trial_user_attr(self._trials[trial_id], key, value)
        super().set_trial_user_attr(trial_id, key, value)


class Draft(InMemoryStorage):
    """Holds one new trial, which follows the `earlier` ones as trial number `number`. Samplers see all of them; the
    earlier ones are shared, not copied."""

    def __init__(self, earlier: Sequence[FrozenTrial], number: int) -> None:
        super().__init__()
        self._earlier, self._number = earlier, number

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        trial_id = super().create_new_trial(study_id, template_trial)
        self.get_trial(trial_id).number = self._number  # the storage's own object, of which changes are copies
        return trial_id

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        own = super().get_all_trials(study_id, deepcopy, states)
        if states == (TrialState.WAITING,):  # of which there are none among the earlier ones
            return own
        return [trial for trial in self._earlier if states is None or trial.state in states] + own
