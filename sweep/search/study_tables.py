"""Writes trials into the tables of Optuna's SQLite storage, by SQL and in one transaction for each decision.

Optuna's own functions change one fact of a trial in a transaction, each with several queries before it: five
transactions and 20 ms of CPU for a short trial, where this takes three and 2 ms.
"""

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, text

_TRIAL = text(
    "INSERT INTO trials (number, study_id, state, datetime_start) VALUES (:number, :study, :state, :start)"
    " RETURNING trial_id"
)
_PARAMETER = text(
    "INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)"
    " VALUES (:trial, :name, :value, :distribution)"
)
_STATE = text("UPDATE trials SET state = :state, datetime_complete = :end WHERE trial_id = :trial")
_VALUE = text(
    "INSERT INTO trial_values (trial_id, objective, value, value_type) VALUES (:trial, 0, :value, :kind)"
    " ON CONFLICT (trial_id, objective) DO UPDATE SET value = excluded.value, value_type = excluded.value_type"
)
_INTERMEDIATE = text(
    "INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)"
    " VALUES (:trial, :step, :value, :kind)"
)
_ATTRIBUTE = {
    kind: text(
        f"INSERT INTO trial_{kind}_attributes (trial_id, key, value_json) VALUES (:trial, :key, :value)"
        " ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json"
    )
    for kind in ("user", "system")
}


def add(file: RDBStorage, study: int, number: int, trial: FrozenTrial) -> int:
    """Adds a trial that begins, with its parameters and attributes. Returns its id."""
    start = {"number": number, "study": study, "state": trial.state.name, "start": _utc(trial.datetime_start)}
    with file.engine.begin() as connection:
        added = int(connection.execute(_TRIAL, start).scalar_one())
        for name, value in trial.params.items():
            distribution = trial.distributions[name]
            stored = {"value": distribution.to_internal_repr(value), "distribution": distribution_to_json(distribution)}
            connection.execute(_PARAMETER, {"trial": added, "name": name, **stored})
        _set_attributes(connection, added, "user", trial.user_attrs)
        _set_attributes(connection, added, "system", trial.system_attrs)
    return added


def change(
    file: RDBStorage,
    trial: int,
    attributes: Mapping[str, Any],
    intermediate: Mapping[int, float],
    end: tuple[TrialState, float | None] | None,
) -> None:
    """Sets user attributes, adds `intermediate` values by epoch, and ends the trial with the state and value `end`."""
    with file.engine.begin() as connection:
        for epoch, value in intermediate.items():
            connection.execute(_INTERMEDIATE, {"trial": trial, "step": epoch, **_number(value)})
        _set_attributes(connection, trial, "user", attributes)
        if end is not None:
            state, result = end
            if result is not None:
                connection.execute(_VALUE, {"trial": trial, **_number(result)})
            connection.execute(_STATE, {"trial": trial, "state": state.name, "end": _utc(datetime.now())})


def reopen(file: RDBStorage, trial: int) -> None:
    """Turns an ended trial into a running one without intermediate values."""
    with file.engine.begin() as connection:
        connection.execute(_STATE, {"trial": trial, "state": TrialState.RUNNING.name, "end": None})
        connection.execute(text("DELETE FROM trial_intermediate_values WHERE trial_id = :trial"), {"trial": trial})


def _set_attributes(connection: Connection, trial: int, kind: str, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        connection.execute(_ATTRIBUTE[kind], {"trial": trial, "key": key, "value": json.dumps(value)})


def _number(value: float) -> dict[str, Any]:
    """A number that may be infinite or NaN, as Optuna stores it in two columns."""
    if math.isfinite(value):
        return {"value": value, "kind": "FINITE"}
    return {"value": None, "kind": "NAN" if math.isnan(value) else "INF_POS" if value > 0 else "INF_NEG"}


def _utc(local: datetime | None) -> str | None:
    return None if local is None else local.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
