"""Whether a JSON value is what a `TypedDict` says, field by field: nothing missing, nothing that is not in it."""

from __future__ import annotations

import enum
import types
from collections.abc import Iterator
from typing import Any, Literal, NotRequired, Required, Union, get_args, get_origin, get_type_hints, is_typeddict


def mismatches(value: Any, kind: Any, at: str = "$") -> list[str]:
    """What is wrong with it, each with its place: `$.session.turn: 'one' is not an int`."""
    return list(_mismatches(value, kind, at))


def _mismatches(value: Any, kind: Any, at: str) -> Iterator[str]:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return
    if origin in (Required, NotRequired):
        yield from _mismatches(value, arguments[0], at)
    elif origin in (Union, types.UnionType):
        found = [mismatches(value, one, at) for one in arguments]
        if all(found):
            yield from min(found, key=len)
    elif origin is Literal:
        if value not in arguments:
            yield f"{at}: {value!r} is none of {arguments}"
    elif is_typeddict(kind):
        yield from _fields(value, kind, at)
    elif origin is list:
        if not isinstance(value, list):
            yield f"{at}: {value!r} is not a list"
        else:
            for place, item in enumerate(value):
                yield from _mismatches(item, arguments[0], f"{at}[{place}]")
    elif origin is dict:
        if not isinstance(value, dict):
            yield f"{at}: {value!r} is not an object"
        else:
            for name, item in value.items():
                yield from _mismatches(name, arguments[0], f"{at} key")
                yield from _mismatches(item, arguments[1], f"{at}.{name}")
    elif isinstance(kind, type) and issubclass(kind, enum.Enum):
        if value not in [member.value for member in kind]:
            yield f"{at}: {value!r} is no {kind.__name__}"
    elif not _is_plain(value, kind):
        yield f"{at}: {value!r} is not of type {getattr(kind, '__name__', kind)}"


def _fields(value: Any, kind: Any, at: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{at}: {value!r} is not an object"
        return
    fields = get_type_hints(kind, include_extras=True)
    required = {name for name, inner in fields.items() if get_origin(inner) is not NotRequired}
    yield from (f"{at}.{name}: is missing" for name in sorted(required - value.keys()))
    yield from (f"{at}.{name}: is not a field of {kind.__name__}" for name in sorted(value.keys() - fields.keys()))
    for name in sorted(fields.keys() & value.keys()):
        yield from _mismatches(value[name], fields[name], f"{at}.{name}")


def _is_plain(value: Any, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, types.NoneType if kind is None else kind)
