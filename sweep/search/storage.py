"""Optuna storages in memory: one that writes each change to the study's file, and one that holds a trial being drawn.

Optuna's own storage of a database asks the database again for each question, and a study that is made of another
study's trials copies them deeply. Both would cost more with each trial of a sweep.
"""

from collections.abc import Container, Mapping, Sequence
from typing import Any

from optuna.storages import InMemoryStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from sweep.search import study_tables


class WrittenThrough(InMemoryStorage):
    """Keeps the one study of `file` in memory: each change is written to the file first, and only memory is read.
    Nobody else may change the file meanwhile. A trial is changed by `change` alone. Without a file it is a plain
    storage in memory."""

    def __init__(self, file: RDBStorage | None) -> None:
        super().__init__()
        self._file = file
        self._study = -1  # these are the file's ids: of the study,
        self._trials: list[int] = []  # and of its trials by their ids in memory, which are their numbers
        for study in file.get_all_studies() if file is not None else ():
            self._study = study._study_id
            known = super().create_new_study(study.directions, study.study_name)
            for key, value in study.user_attrs.items():
                super().set_study_user_attr(known, key, value)
            for trial in file.get_all_trials(self._study, deepcopy=False) if file is not None else ():
                self._trials.append(trial._trial_id)
                super().create_new_trial(known, trial)

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        if self._file is not None:
            self._study = self._file.create_new_study(directions, study_name)
        return super().create_new_study(directions, study_name)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        if self._file is not None:
            self._file.set_study_user_attr(self._study, key, value)
        super().set_study_user_attr(study_id, key, value)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        if self._file is not None:
            assert template_trial is not None
            self._trials.append(study_tables.add(self._file, self._study, len(self._trials), template_trial))
        return super().create_new_trial(study_id, template_trial)

    def change(
        self,
        number: int,
        attributes: Mapping[str, Any],
        intermediate: Mapping[int, float] | None = None,
        end: tuple[TrialState, float | None] | None = None,
    ) -> None:
        """Sets a trial's user attributes, adds `intermediate` values by epoch, and ends the trial with the state and
        value `end`: all in one write, so that after a crash the file has all of it or nothing."""
        intermediate = intermediate or {}
        if self._file is not None:
            study_tables.change(self._file, self._trials[number], attributes, intermediate, end)
        for key, value in attributes.items():
            self.set_trial_user_attr(number, key, value)
        for epoch, score in intermediate.items():
            self.set_trial_intermediate_value(number, epoch, score)
        if end is not None:
            state, result = end
            self.set_trial_state_values(number, state, None if result is None else [result])


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
