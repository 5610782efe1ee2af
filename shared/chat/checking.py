"""How a request's body is checked against a model, and how the first wrong field is named.

Hidden here: pydantic's errors, whose paths go through the branches of unions. For example, a part of a message without its
type is `messages[0].content[1].type`, as OpenAI would call it.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from shared.errors import BadRequest

_UNION_LABELS = frozenset({"str", "int", "float", "bool", "dict", "list"})

_Model = TypeVar("_Model", bound=BaseModel)


class Lenient(BaseModel):
    """Known fields have their type, exactly; unknown ones are left alone."""

    model_config = ConfigDict(extra="allow", strict=True)


def wrong(field: str, message: str) -> PydanticCustomError:
    """What is wrong with a field of the object being checked."""
    return PydanticCustomError("field", message, {"field": field})


def _json_type(value: Any) -> str | None:
    if isinstance(value, BaseModel | dict):
        return "<object>"
    return "<string>" if isinstance(value, str) else "<array>" if isinstance(value, list) else None


def either(message: str) -> Discriminator:
    """Tells the branches of a union apart by JSON type, so that an error is about the branch that was meant."""
    return Discriminator(_json_type, custom_error_type="either", custom_error_message=f"Input should be {message}")


def check(model: type[_Model], body: object) -> _Model:
    if not isinstance(body, dict):
        raise BadRequest("The request body must be a JSON object.")
    try:
        return model.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
    param = _param(first)
    text = first["msg"].removeprefix("Value error, ")
    raise BadRequest(f"{param}: {text}." if param else f"{text}.", param=param or None)


def _param(error: ErrorDetails) -> str:
    """`('messages', 0, 'content', '<array>', 1, 'type')` → `messages[0].content[1].type`: branches of a union are no part
    of the path, and nothing that the client made up is."""
    path = ""
    for part in (*error["loc"], *error.get("ctx", {}).get("field", "").split(".")):
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part or part.startswith("<"):
            continue
        elif re.fullmatch(r"[a-z_]+", part) and part not in _UNION_LABELS:
            path += f".{part}" if path else part
        else:
            break
    return path
