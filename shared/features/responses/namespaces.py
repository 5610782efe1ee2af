"""Namespaces of tools, which a chat does not know: their tools under names of their own, and the way back.

    {type: namespace, name: crm, tools: [{type: function, name: find}]}      the tool `crm__find`
    its call                                                                 {type: function_call, name: find, namespace: crm}

Hidden here: names that are too long for a provider, or have letters that it refuses, and where a namespace's description goes:
it is shown to the model with each tool. Pure.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Tool = dict[str, Any]

NAMESPACES = "namespaces"
"""The term (request.py) in which they stand: `{NAMESPACE: {"description": …, "tools": {FLAT NAME: OWN NAME}}}`."""

_LONGEST = 64
_OTHER = re.compile(r"[^a-zA-Z0-9_-]")


class Own(NamedTuple):
    """What a tool is called by its client; without a namespace that is empty."""

    name: str
    namespace: str = ""


def flat_name(namespace: str, name: str) -> str:
    """What a tool of a namespace is called in a chat. The same always, so that a history needs no table."""
    joined = _OTHER.sub("_", f"{namespace}__{name}")
    if joined == f"{namespace}__{name}" and len(joined) <= _LONGEST:
        return joined
    digest = hashlib.sha256(f"{namespace}\0{name}".encode()).hexdigest()[:8]
    return f"{joined[: _LONGEST - 9]}_{digest}"


def flattened(tools: Sequence[Tool]) -> tuple[list[Tool], dict[str, Any]]:
    """The tools without namespaces, and the term that says where they were."""
    found: list[Tool] = []
    spaces: dict[str, Any] = {}
    for tool in tools:
        if tool["type"] != "namespace":
            found.append(tool)
            continue
        space, told = tool["name"], tool.get("description") or ""
        named = [(flat_name(space, one["name"]), one) for one in tool["tools"]]
        spaces[space] = {"description": told, "tools": {flat: one["name"] for flat, one in named}}
        for flat, one in named:
            description = "\n\n".join(text for text in (one.get("description"), told) if text)
            found.append({**one, "name": flat, "description": description or None})
    return found, spaces


def spaces_in(tools: Sequence[Tool]) -> dict[str, Any]:
    """The term for tools that are not looked at otherwise, and may be anything."""
    found: dict[str, Any] = {}
    for tool in tools:
        space, inner = tool.get("name"), tool.get("tools")
        if tool.get("type") == "namespace" and isinstance(space, str) and isinstance(inner, list):
            named = [one["name"] for one in inner if isinstance(one, dict) and isinstance(one.get("name"), str)]
            tools_of = found.setdefault(space, {"description": "", "tools": {}})["tools"]
            tools_of |= {flat_name(space, name): name for name in named}
    return found


def grouped(tools: Sequence[Tool], spaces: Mapping[str, Any]) -> list[Tool]:
    """The same back."""
    owners = {flat: space for space, of in spaces.items() for flat in of["tools"]}
    found: list[Tool] = []
    for tool in tools:
        space = owners.get(tool["name"])
        if space is None:
            found.append(tool)
            continue
        of = spaces[space]
        if not (found and found[-1]["type"] == "namespace" and found[-1]["name"] == space):
            found.append({"type": "namespace", "name": space, "description": of["description"], "tools": []})
        description = (tool.get("description") or "").removesuffix(of["description"]).removesuffix("\n\n")
        own = {**tool, "name": of["tools"][tool["name"]], "description": description or None}
        found[-1]["tools"].append(own)
    return found


def names_in(messages: Sequence[Mapping[str, Any]], names: Mapping[str, Own]) -> dict[str, Own]:
    """Those of the names by which tools are called in these messages of a chat."""
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    called = {(call.get(call.get("type")) or {}).get("name") for call in calls}
    return {flat: own for flat, own in names.items() if flat in called}


def own_names_of(items: Sequence[Mapping[str, Any]]) -> dict[str, Own]:
    """What tools of namespaces are called by these items, by their names in the chat."""
    owns = [Own(item["name"], item["namespace"]) for item in items if _is_named(item)]
    return {flat_name(own.namespace, own.name): own for own in owns}


def own_names(spaces: Mapping[str, Any] | None) -> dict[str, Own]:
    """What the tools of namespaces are called by their client, by their names in the chat."""
    return {flat: Own(name, space) for space, of in (spaces or {}).items() for flat, name in of["tools"].items()}


def with_flat_name(named: dict[str, Any]) -> dict[str, Any]:
    """A call, or a choice of a tool, that may name a namespace, as one that does not."""
    if not _is_named(named):
        return named
    rest = {field: value for field, value in named.items() if field != "namespace"}
    return {**rest, "name": flat_name(named["namespace"], named["name"])}


def _is_named(named: Mapping[str, Any]) -> bool:
    """Whether a namespace is named."""
    space, name = named.get("namespace"), named.get("name")
    return isinstance(space, str) and bool(space) and isinstance(name, str)


def with_own_name(named: dict[str, Any], names: Mapping[str, Own]) -> dict[str, Any]:
    """The same back."""
    own = names.get(named.get("name") or "")
    return named if own is None else {**named, "name": own.name, "namespace": own.namespace}
