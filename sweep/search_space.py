"""The search space as Optuna asks for it: define-by-run, a choice's own parameters after the choice."""

import itertools

import optuna

from sweep.config import Parameter, Space, Value


def suggest(trial: optuna.Trial, space: Space) -> dict[str, Value]:
    """One trial's values by dotted path."""
    values: dict[str, Value] = {}
    for path, parameter in space.items():
        values[path] = _suggest(trial, path, parameter)
        values |= suggest(trial, (parameter.choice or {}).get(values[path], {}))
    return values


def _suggest(trial: optuna.Trial, path: str, parameter: Parameter) -> Value:
    if parameter.integer is not None:
        return trial.suggest_int(path, *parameter.integer)
    if parameter.bounds is not None:
        return trial.suggest_float(path, *parameter.bounds, log=parameter.loguniform is not None)
    value: Value = trial.suggest_categorical(path, parameter.options)  # type: ignore[assignment]
    return value


def grid_points(space: Space) -> list[dict[str, Value]]:
    """Every combination of listed values, with the parameters that belong to the chosen ones."""
    per_parameter = [
        [
            {path: value, **below}
            for value in parameter.options
            for below in grid_points((parameter.choice or {}).get(value, {}))
        ]
        for path, parameter in space.items()
    ]
    return [{k: v for part in parts for k, v in part.items()} for parts in itertools.product(*per_parameter)]
