"""The HParams plugin's columns, and a trial's values in them."""

from collections.abc import Mapping
from typing import Any

from tensorboardX.proto.api_pb2 import DataType, HParamInfo, Interval

from model.training.scores import columns
from sweep.config import Parameter, Space, Value, plain, walk


def metric_tags() -> list[str]:
    """The tags of the metric columns in HParams, in order."""
    first, *others = (f"epoch/{name}" for name in columns())
    return [first, "best/error_rate", *others]


def hparam_columns(space: Space) -> list[HParamInfo]:
    """The HParams columns: type and domain of each searched path. A path below several choices gets the union of their
    intervals."""
    columns: dict[str, HParamInfo] = {}
    for path, parameter, _ in walk(space):
        info = columns.setdefault(path, HParamInfo(name=path))
        if parameter.bounds is not None:
            low, high = parameter.bounds
            if info.HasField("domain_interval"):
                low, high = min(low, info.domain_interval.min_value), max(high, info.domain_interval.max_value)
            info.type = DataType.Value("DATA_TYPE_FLOAT64")
            info.domain_interval.CopyFrom(Interval(min_value=low, max_value=high))
        else:
            info.type = DataType.Value(f"DATA_TYPE_{_kind(parameter)}")
            del info.domain_discrete.values[:]
            for option in parameter.options:
                set_value(info.domain_discrete.values.add(), _cell(option, parameter))
    return list(columns.values())


def hparams(space: Space, values: Mapping[str, Value]) -> dict[str, bool | int | float | str]:
    """A trial's searched values for HParams, in the types of the columns: all are text where one option is text."""
    return {
        path: _cell(values[path], parameter)
        for path, parameter, given in walk(space)
        if path in values and given.items() <= values.items()
    }


def _kind(parameter: Parameter) -> str:
    kinds = {bool: "BOOL", int: "FLOAT64", float: "FLOAT64", str: "STRING"}
    (kind, *mixed) = {kinds[type(plain(option))] for option in parameter.options}
    return "STRING" if mixed else kind


def _cell(value: Value, parameter: Parameter) -> bool | int | float | str:
    text = parameter.bounds is None and _kind(parameter) == "STRING"
    return str(plain(value)) if text else plain(value)


def set_value(target: Any, value: Value) -> None:
    """Fills a protobuf Value."""
    if isinstance(value, bool):
        target.bool_value = value
    elif isinstance(value, int | float):
        target.number_value = value
    else:
        target.string_value = value
