"""The tool calls of an answer in the one form that clients can add up, however their pieces come. Pure.

Hidden here: which piece belongs to which call. Out come `index` from 0 in order of appearance (OpenAI's SDK for Python takes
it for the place), `id`, `type` and the name once, at a call's start, an id that no other call of the conversation has, and
arguments as text, `{}` for a call without. For example, SGLang tells all parallel calls under index 0, and a new id with a
name begins a new call; Gemini's OpenAI format gives calls no id, and they get one of ours. A name that comes in pieces, as
`get_` and `weather`, is told when it is whole: no client adds names up as another does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from shared.lib import json
from worker.providers.errors import malformed, parse

_LONGEST = 65536
"""Characters of arguments beyond which whether they are whole is not looked at."""


class CallIds:
    """The ids of a conversation, and what its tools are called. One instance serves all choices of an answer.

    `seed` is what ours are made of: the same answer, read again, has the same. `taken` are those of the request, `names` the
    names of its tools.
    """

    def __init__(self, seed: str, taken: Iterable[str] = (), names: Iterable[str] = ()) -> None:
        self._seed, self._taken, self._made = seed, set(taken), 0
        self._names = frozenset(names)

    def begins_a_name(self, text: str) -> bool:
        """Whether a name is to go on: it is no tool's, and one of them begins with it."""
        return bool(text) and text not in self._names and any(name.startswith(text) for name in self._names)

    def has_a_name(self, text: str) -> bool:
        """Whether this is a tool's name, or its beginning."""
        return text in self._names or self.begins_a_name(text)

    def claim(self, given: str) -> str:
        """The provider's own id, or one of ours where there is none or another call has it. Ours has nine letters and
        digits, which is what Mistral wants of an id (docs.mistral.ai/capabilities/function_calling) and all others take."""
        found = given
        while not found or found in self._taken:
            self._made += 1
            found = hashlib.sha256(f"{self._seed} {self._made}".encode()).hexdigest()[:9]
        self._taken.add(found)
        return found


def ids_in(messages: Iterable[Any]) -> set[str]:
    """The call ids in the messages of a request."""
    return {
        call["id"]
        for message in messages
        if isinstance(message, dict) and isinstance(calls := message.get("tool_calls"), list)
        for call in calls
        if isinstance(call, dict) and isinstance(call.get("id"), str)
    }


def tool_names(body: dict[str, Any]) -> set[str]:
    """What the tools of a request are called, those of older ones (`functions`) among them."""
    tools = [tool for field in ("tools", "functions") if isinstance(found := body.get(field), list) for tool in found]
    told = [tool.get("function") or tool.get("custom") or tool for tool in tools if isinstance(tool, dict)]
    return {one["name"] for one in told if isinstance(one, dict) and isinstance(one.get("name"), str)}


class _Call:
    """One call so far. `given` is the provider's own id; `waiting` what came of it before its name was whole; `empty`: it
    began with `{}`, which is all of its arguments if nothing follows, and what some begin every call with."""

    __slots__ = ("empty", "field", "given", "kind", "name", "pieces", "waiting")

    def __init__(self, kind: str, given: str, name: str) -> None:
        self.kind, self.given, self.name = kind, given, name
        self.field = "input" if kind == "custom" else "arguments"
        self.pieces: list[str] = []
        self.empty = False
        self.waiting: dict[str, Any] | None = None

    @property
    def text(self) -> str:
        self.pieces[:] = ["".join(self.pieces)]
        return self.pieces[0]

    @property
    def told(self) -> str:
        """The same, with what is held back of it."""
        return self.text or ("{}" if self.empty else "")

    @property
    def whole(self) -> bool:
        """Whether its arguments are an object that has its end: what follows is another call's."""
        if self.empty and not self.text:
            return True
        last = next((piece for piece in reversed(self.pieces) if piece.strip()), "")
        if not last.rstrip().endswith("}") or len(self.text) > _LONGEST:
            return False
        return isinstance(parse(self.text.encode("utf-8", "replace")), dict)


class ToolCalls:
    """The calls of one choice."""

    def __init__(self, ids: CallIds) -> None:
        self._ids = ids
        self._calls: list[_Call] = []
        self._at: dict[int, list[int]] = {}
        """Places by the provider's index."""
        self._opened: set[int] = set()
        """Places of the calls that the delta at hand began, with their names."""

    def __bool__(self) -> bool:
        return bool(self._calls)

    def read(self, calls: Any) -> list[dict[str, Any]]:
        """A delta's `tool_calls` in our form; its items may be changed. Raises UpstreamInvalid."""
        if isinstance(calls, dict):
            numbered = all(isinstance(key, str) and key.isdecimal() for key in calls)
            calls = list(calls.values()) if numbered else [calls]
        if not isinstance(calls, list):
            raise malformed()
        self._opened.clear()
        told: list[dict[str, Any]] = []
        for call in calls:
            if call is not None and (piece := self._piece(call)) is not None:  # null: a list with gaps of JavaScript's
                told += self._before(piece["index"])
                told.append(piece)
        return told

    def _before(self, place: int) -> list[dict[str, Any]]:
        """Calls that wait for the rest of their names, where a later one begins: they have them."""
        told = []
        for at, call in enumerate(self._calls[:place]):
            if call.waiting is not None and call.name:
                told.append(self._opening(at, call.waiting, {}, call.text))
                call.waiting = None
        return told

    def close(self) -> list[dict[str, Any]]:
        """What is missing at the end of an answer: arguments of calls that have none, calls that were never named."""
        told = []
        for place, call in enumerate(self._calls):
            lacks = call.kind == "function" and not call.text.strip()
            if lacks:
                call.pieces.append("{}")
            if call.waiting is not None:
                told.append(self._opening(place, call.waiting, {}, call.text))
                call.waiting = None
            elif lacks:
                told.append({"index": place, "function": {"arguments": "{}"}})
        return told

    def _piece(self, call: Any) -> dict[str, Any] | None:
        if not isinstance(call, dict):
            raise malformed()
        index = whole_number(call.get("index"))
        kind = "custom" if isinstance(call.get("custom"), dict) else "function"
        inner = _inner(call, kind)
        given, name = _word(call.get("id")), _word(inner.get("name"))
        text = text_of(inner.get("input" if kind == "custom" else "arguments"))
        place = self._find(index, given, name, text)
        if place is None:
            place = len(self._calls)
            self._calls.append(_Call(kind, given, name))
            if index is not None:
                self._at.setdefault(index, []).append(place)
            known = self._calls[place]
            known.empty = kind == "function" and text.strip() == "{}"
            text = "" if known.empty or (kind == "function" and text.strip() == "null") else text
        else:
            known = self._calls[place]
            again = name or (text[:1] == "{" and text.rstrip().endswith("}"))
            if again and known.waiting is None and given in ("", known.given):
                if text == known.told and known.whole and (name or text != "{}"):
                    return None  # told twice
            elif known.kind == "function" and text.strip() == "null" and not known.text.strip():
                text = ""
            if known.waiting is None:
                known.pieces.append(text)
                return _continued(call, place, known, inner, text)
            call = {**known.waiting, **{key: item for key, item in call.items() if item}}
            known.name, text = self._longer_name(known.name, name), known.text + text
            known.pieces.clear()
        known.pieces.append(text)
        if not known.name or (not known.told and self._ids.begins_a_name(known.name)):
            known.waiting = call
            return None
        known.waiting = None
        self._opened.add(place)
        return self._opening(place, call, inner, text)

    def _find(self, index: int | None, given: str, name: str, text: str) -> int | None:
        """The place of the call that a piece goes on with; None if it begins one."""
        places = range(len(self._calls)) if index is None else self._at.get(index, ())
        if not places:
            if given and not name:  # some count the pieces, not the calls
                return next((at for at, call in enumerate(self._calls) if call.given == given), None)
            # Without id and name it begins nothing: the newest call's, under another index.
            return None if given or name or not self._calls else len(self._calls) - 1
        newest = places[-1]
        if given:
            same = next((at for at in reversed(places) if self._calls[at].given == given), None)
            if same is not None:
                return None if name and self._follows(self._calls[same], name, text) else same
            if not name:
                return None if index is None else newest  # some make up an id for every piece
            call = self._calls[newest]
            if not call.given and call.name in ("", name) and not call.text:
                call.given = given
                return newest
            # Some make up an id for every piece, and repeat the name beside it.
            goes_on = call.name == name and call.text.strip() and text.strip() and not text.lstrip().startswith("{")
            return newest if goes_on and index is not None and not call.whole else None
        if name and newest in self._opened:
            return None  # named twice in one delta: two calls
        return None if name and self._follows(self._calls[newest], name, text) else newest

    def _follows(self, call: _Call, name: str, text: str) -> bool:
        """Whether a piece with a name, and no id or that of this call, is another call's: some repeat the name in every
        piece, some have calls one after the other."""
        if call.waiting is not None and call.name and self._ids.has_a_name(self._longer_name(call.name, name)):
            return False
        if call.name != name:
            return bool(call.name)
        return bool(text) and call.whole and text != call.told

    def _longer_name(self, begun: str, name: str) -> str:
        """A name with its next piece, which some tell from the name's start on."""
        joined = begun + name
        again = name.startswith(begun) and self._ids.has_a_name(name) and not self._ids.has_a_name(joined)
        return name if again else joined

    def _opening(self, place: int, call: dict[str, Any], inner: dict[str, Any], text: str) -> dict[str, Any]:
        known = self._calls[place]
        call["index"], call["id"] = place, self._ids.claim(known.given)
        call["type"] = known.kind
        call[known.kind] = {**inner, "name": known.name, known.field: text}
        return call


_ARGUMENTS = ("parameters", "input", "args")
"""What some call the arguments of a function: Llama's own words, Anthropic's, Gemini's."""


def _inner(call: dict[str, Any], kind: str) -> dict[str, Any]:
    """A call's name and arguments, which some tell beside the id."""
    inner = call.get(kind)
    if not isinstance(inner, dict):
        named = {"name": inner} if isinstance(inner, str) else {}
        told = ("name", "arguments", *_ARGUMENTS) if kind == "function" else ("name", "arguments")
        inner = {**named, **{key: call.pop(key) for key in told if key in call}}
    if kind == "function" and inner.get("arguments") is None:
        for other in _ARGUMENTS:
            if isinstance(inner.get(other), dict | str):
                inner["arguments"] = inner.pop(other)
                break
    return inner


def _continued(
    call: dict[str, Any], place: int, known: _Call, inner: dict[str, Any], text: str
) -> dict[str, Any] | None:
    """A piece less what was told at the start: clients would join it to that."""
    call["index"] = place
    call.pop("id", None)
    call.pop("type", None)
    inner.pop("name", None)
    if known.field in inner:
        inner[known.field] = text
    if known.kind in call:
        call[known.kind] = inner
    return call if inner or len(call) > 1 + (known.kind in call) else None


def _word(value: Any) -> str:
    """An id or a name; some send numbers."""
    return value if isinstance(value, str) else str(value) if type(value) is int else ""


def whole_number(value: Any) -> int | None:
    """A place in a list, which some send as text or with a point. Raises UpstreamInvalid."""
    if value is None or type(value) is int:
        return value
    if (isinstance(value, str) and value.isdecimal()) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    raise malformed()


def text_of(value: Any) -> str:
    """Arguments are text, also where they are sent as an object."""
    if isinstance(value, str):
        return value
    try:
        return "" if value is None else json.dumps(value).decode()
    except ValueError:
        raise malformed() from None


def forces_one(body: dict[str, Any]) -> bool:
    """Whether the request names the function that must be called."""
    choice = body.get("tool_choice")
    return (isinstance(choice, dict) and choice.get("type") in ("function", "custom")) or isinstance(
        body.get("function_call"), dict
    )
