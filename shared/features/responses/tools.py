"""Tools, the choice among them, and the format of the text: flat as this API has them, nested as a chat has them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from shared.features.responses.namespaces import Own, with_flat_name, with_own_name


def nested_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool as a chat has it: `{type, function: {name, …}}`."""
    if tool["type"] == "function":
        fields = ("name", "description", "parameters", "strict")
        return {"type": "function", "function": {name: tool[name] for name in fields if tool.get(name) is not None}}
    custom = {name: tool[name] for name in ("name", "description", "format") if tool.get(name) is not None}
    if (form := custom.get("format")) and form.get("type") == "grammar":
        grammar = {name: value for name, value in form.items() if name != "type"}
        custom["format"] = {"type": "grammar", "grammar": grammar}
    return {"type": "custom", "custom": custom}


def flat_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """The same back."""
    if tool["type"] == "function":
        return {"type": "function", "description": None, "parameters": None, "strict": None, **tool["function"]}
    custom = dict(tool["custom"])
    form = custom.get("format")
    if isinstance(form, dict) and form.get("type") == "grammar":
        custom["format"] = {"type": "grammar", **form["grammar"]}
    return {"type": "custom", **custom}


def nested_choice(choice: Any) -> Any:
    """A choice of tools as a chat has it."""
    if isinstance(choice, str):
        return choice
    if choice["type"] == "allowed_tools":
        named = map(with_flat_name, choice["tools"])
        tools = [{"type": tool["type"], tool["type"]: {"name": tool["name"]}} for tool in named]
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice["mode"], "tools": tools}}
    return {"type": choice["type"], choice["type"]: {"name": with_flat_name(choice)["name"]}}


def flat_choice(choice: Any, names: Mapping[str, Own] = MappingProxyType({})) -> Any:
    """The same back; `names` are those of tools in namespaces."""
    if isinstance(choice, str):
        return choice
    if choice["type"] == "allowed_tools":
        allowed = choice["allowed_tools"]
        tools = [
            with_own_name({"type": tool["type"], "name": tool[tool["type"]]["name"]}, names)
            for tool in allowed["tools"]
        ]
        return {"type": "allowed_tools", "mode": allowed["mode"], "tools": tools}
    return with_own_name({"type": choice["type"], "name": choice[choice["type"]]["name"]}, names)


def add_text(body: dict[str, Any], text: dict[str, Any]) -> None:
    """Adds what `text` asks for to a chat request: `response_format`, `verbosity`."""
    if text.get("verbosity") is not None:
        body["verbosity"] = text["verbosity"]
    form = text.get("format")
    if form is None or form["type"] == "text":
        return
    fields = {name: value for name, value in form.items() if name != "type" and value is not None}
    body["response_format"] = {
        "type": form["type"],
        **({"json_schema": fields} if form["type"] == "json_schema" else {}),
    }


def flat_text(body: dict[str, Any]) -> dict[str, Any]:
    """The same back, of a chat request."""
    form = body.get("response_format")
    if form is None:
        text: dict[str, Any] = {"format": {"type": "text"}}
    elif form["type"] == "json_schema":
        text = {"format": {"type": "json_schema", "description": None, "strict": None, **form["json_schema"]}}
    else:
        text = {"format": {"type": form["type"]}}
    return text if body.get("verbosity") is None else {**text, "verbosity": body["verbosity"]}
