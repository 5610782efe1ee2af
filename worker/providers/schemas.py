"""JSON schemas as structured outputs take them: each provider knows a part of JSON Schema, and refuses or skips the rest.

Pure functions over schemas as the client wrote them, which are not changed. What a provider would refuse is said to the model
in the description instead: the schema is not enforced there, but the model knows it.
"""

from __future__ import annotations

from typing import Any

from shared.lib import json

Schema = dict[str, Any]

_ANNOTATIONS = ("title", "description")
_FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid")
_SAID_ELSEWHERE = ("$schema", "$id", "$comment", "default", "examples", "readOnly", "writeOnly", "deprecated")


def for_claude(schema: Schema) -> Schema:
    """What Claude's structured outputs enforce (platform.claude.com/docs/en/build-with-claude/structured-outputs).

    Objects take no other properties; of bounds there are only `minItems` 0 and 1; `oneOf` is `anyOf`. It is what Anthropic's
    own client makes of a schema (anthropic 2.14, transform_schema), but for schemas that it refuses to send: those go out
    with what can be said of them.
    """
    rest = {key: value for key, value in schema.items() if key not in _SAID_ELSEWHERE}
    fit: Schema = {}
    for field in ("$defs", "definitions"):
        if isinstance(defs := rest.pop(field, None), dict):
            fit[field] = {name: _claude(inner) for name, inner in defs.items()}
    if "$ref" in rest:
        return {**fit, "$ref": rest["$ref"]}
    kind = rest.pop("type", None)
    literals = {field: rest.pop(field) for field in ("enum", "const") if _is_literal(field, rest.get(field, ...))}
    variants = {field: rest.pop(field) for field in ("anyOf", "oneOf", "allOf") if isinstance(rest.get(field), list)}
    if variants:
        field, members = next(iter(variants.items()))
        fit["anyOf" if field == "oneOf" else field] = [_claude(member) for member in members]
        rest |= {other: members for other, members in variants.items() if other != field}
    elif isinstance(kind, list):
        fit["anyOf"] = [_claude({"type": one, **_of_kind(one, rest)}) for one in kind]
        rest = {key: value for key, value in rest.items() if key in _ANNOTATIONS}
    elif not literals:
        kind = kind or _kind(rest)
        if kind:
            fit["type"] = kind
    fit |= literals | {field: rest.pop(field) for field in _ANNOTATIONS if rest.get(field) is not None}
    if kind == "object" and not literals:
        rest.pop("additionalProperties", None)
        properties = rest.pop("properties", None)
        fit["properties"] = {
            name: _claude(inner) for name, inner in (properties if isinstance(properties, dict) else {}).items()
        }
        fit["additionalProperties"] = False
        if (required := rest.pop("required", None)) is not None:
            fit["required"] = required
    elif kind == "array":
        if (members := rest.pop("items", None)) is not None:
            fit["items"] = _claude(members)
        if rest.get("minItems") in (0, 1):
            fit["minItems"] = rest.pop("minItems")
    elif kind == "string" and rest.get("format") in _FORMATS:
        fit["format"] = rest.pop("format")
    if rest:
        told = ", ".join(f"{key}: {_written(value)}" for key, value in rest.items())
        fit["description"] = "\n\n".join(filter(None, (fit.get("description"), f"{{{told}}}")))
    return fit


def for_gemini(schema: Schema) -> Schema:
    """Without what Google's reader of JSON Schema does not know and what means nothing here: `$schema` and comments; `const`
    is an `enum` of one (ai.google.dev/api/generate-content, responseJsonSchema)."""
    fit: Schema = {}
    for key, value in schema.items():
        if key in ("$schema", "$comment"):
            continue
        if key == "const":
            fit["enum"] = [value]
        elif key in ("properties", "$defs", "definitions", "patternProperties") and isinstance(value, dict):
            fit[key] = {name: for_gemini(inner) if isinstance(inner, dict) else inner for name, inner in value.items()}
        elif key in ("enum", "default", "examples", "required"):
            fit[key] = value
        elif isinstance(value, dict):
            fit[key] = for_gemini(value)
        elif isinstance(value, list):
            fit[key] = [for_gemini(inner) if isinstance(inner, dict) else inner for inner in value]
        else:
            fit[key] = value
    return fit


def of_object(parameters: Schema | None) -> Schema:
    """A function's parameters with the `type` that Claude, Cohere and Ollama want there; a function without any has none."""
    if not parameters:
        return {"type": "object", "properties": {}}
    return parameters if "type" in parameters else {"type": "object", **parameters}


def _claude(schema: Any) -> Any:
    return for_claude(schema) if isinstance(schema, dict) else schema


def _is_literal(field: str, value: Any) -> bool:
    values = value if field == "enum" and isinstance(value, list) else [value]
    return bool(values) and all(one is None or isinstance(one, str | int | float) for one in values)


def _kind(schema: Schema) -> str | None:
    """The type that a schema without one means, by what else it says."""
    if "properties" in schema:
        return "object"
    return "array" if "items" in schema else None


def _of_kind(kind: Any, schema: Schema) -> Schema:
    """What of a schema for several types is about this one."""
    own = {
        "object": ("properties", "required", "additionalProperties"),
        "array": ("items", "minItems", "maxItems", "uniqueItems"),
        "string": ("format", "minLength", "maxLength", "pattern"),
        "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    }
    own["integer"] = own["number"]
    return {key: schema[key] for key in own.get(str(kind), ()) if key in schema}


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value).decode()
