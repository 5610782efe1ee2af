"""What JSON schemas are written with: the simple ones, and functions that make others of them."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
TRUTH: Schema = {"type": "boolean"}
ANY_OBJECT: Schema = {"type": "object", "additionalProperties": True}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def or_null(schema: Schema) -> Schema:
    kind = schema.get("type")
    return {"type": [kind, "null"]} if schema == {"type": kind} else {"anyOf": [schema, {"type": "null"}]}


def list_of(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def one_of(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def object_of(described: str, /, *, perhaps: dict[str, Schema] | None = None, **fields: Schema) -> Schema:
    """`fields` are always there, those of `perhaps` not."""
    return {
        "type": "object",
        "description": described,
        "required": list(fields),
        "properties": {**fields, **(perhaps or {})},
        "additionalProperties": True,
    }


def page(item: Schema, *, perhaps: dict[str, Schema] | None = None) -> Schema:
    """OpenAI's list object."""
    ids = or_null(TEXT)
    return object_of(
        "A page of a list.",
        perhaps=perhaps,
        object=one_of("list"),
        data=list_of(item),
        first_id=ids,
        last_id=ids,
        has_more=TRUTH,
    )
