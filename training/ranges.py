"""The ranges of settings, as types to annotate fields with, and one line that names every wrong value.

pydantic holds the values to their types and ranges. A value is converted in one case only: an integer for a number.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

T = TypeVar("T")

Count = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, lt=math.inf)]
NonNegativeFloat = Annotated[float, Field(ge=0, lt=math.inf)]

TYPES = {
    "bool_type": "true or false",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "string_type": "a string",
    "tuple_type": "an array",
    "dataclass_type": "a table",
}
LIMITS = {
    "greater_than": "above {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "below {lt}",
    "less_than_equal": "{le} or less",
    "multiple_of": "a multiple of {multiple_of}",
    "too_short": "{min_length} levels",  # the arrays of a fixed length have one entry for each level of a network
    "too_long": "{max_length} levels",
    "string_too_short": "a name or a path",
}


class Section:
    """The base of the dataclasses that `validated` fills. Without it pydantic would take "false" for True."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")


class Relation(NamedTuple):
    """A condition between several settings."""

    field: str
    """The setting that is named where the condition does not hold."""
    holds: bool
    allowed: str
    """What the value must be."""


def validated(kind: type[T], values: Mapping[str, Any]) -> T:
    """The dataclass `kind`, filled from nested dictionaries with arrays as lists or tuples, as of TOML or JSON.

    Raises:
        ValueError: unknown fields, and values of a wrong type or out of range; all are named.
    """
    try:
        # pydantic's strict mode takes lists for tuples, and dictionaries for dataclasses, from JSON alone.
        return TypeAdapter(kind).validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise ValueError("; ".join(dict.fromkeys(_sentences(error, values)))) from None


def _sentences(error: ValidationError, values: Mapping[str, Any]) -> Iterator[str]:
    for problem in error.errors():
        kind, context = problem["type"], problem.get("ctx", {})
        fields = [str(part) for part in problem["loc"] if not isinstance(part, int)]  # without the index in an array
        name = ".".join(fields)
        if kind in LIMITS:
            limits = {key: _plain(limit) for key, limit in context.items()}
            yield out_of_range(name, _value_at(values, fields), LIMITS[kind].format_map(limits))
        elif kind in TYPES:
            yield f"{problem['input']!r} is not {TYPES[kind]} @ $.{name}"
        elif kind == "literal_error":
            choices = context["expected"].replace("'", "").replace(" or ", ", ")
            yield f"{problem['input']!r} is not one of {choices} @ $.{name}"
        elif kind == "unexpected_keyword_argument":
            yield f"{name} is not a setting"
        else:
            yield f"{problem['msg']} @ $.{name}"


def _plain(limit: object) -> object:
    """A limit as people write it: 0 and not 0.0."""
    return int(limit) if isinstance(limit, float) and limit.is_integer() else limit


def out_of_range(name: str, value: object, allowed: str) -> str:
    """The sentence about a value that is not allowed."""
    return f"{name} is {value!r}, must be {allowed}"


def _value_at(values: Mapping[str, Any], fields: Sequence[str]) -> object:
    value: Any = values
    for field in fields:
        value = value[field]
    return tuple(value) if isinstance(value, list) else value
