"""What is shown of an answer to those who have it by a share: what the share includes, and nothing that is not named here.

Hidden here: where reasoning stands: in fields of its own, in parts of the content, or in `<think>…</think>` at its start,
which may be cut anywhere between two chunks. All objects are made anew of the fields that are known to be the answer's, since
providers put whatever they like beside these. A chunk that has nothing to show stays, as an empty one, so that positions are
those of the log, and a viewer that comes again goes on where it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from api.errors import outcome_error, problem_error
from api.live.projection import Fold, Step
from shared.chat.messages import REASONING_FIELDS
from shared.errors import ErrorObject, LogError
from shared.features.tokens import Share
from shared.lib import json, sse
from shared.log.entry import SEAL, Entry, Kind
from shared.log.records import Header, Outcome

_OPEN, _CLOSE = "<think>", "</think>"
_SEAL_ID = str(SEAL).encode()
_DELTA = ("role", "refusal", "annotations", "images", "audio")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_MESSAGE = ("role", "content", "refusal", "name", "tool_call_id")
_STATE = (
    "id object status model created_at started_at ended_at attempts interrupted timings chunks position characters "
    "finish_reasons viewers"
).split()
_HIDDEN = "The answer ended with an error. Its owner can see which."


class SharedEvents:
    """The projection of one kind of share. Its viewers know attempts and positions, as those of the native events do."""

    encode = None
    keepalive = sse.KEEPALIVE
    native = resumes = True

    def __init__(self, *, reasoning: bool) -> None:
        self.reasoning = reasoning

    def start(self, header: Header) -> Step:
        return Step((), _Fold(self.reasoning, header["model"], 0, False, ()))

    def attempt(self, epoch: int, replaced: Fold) -> Sequence[bytes]:
        """As of the native events."""
        return [sse.frame(json.dumps({"attempt": epoch}), id=b"%d-0" % epoch, event=b"attempt")]


class _Head(NamedTuple):
    """How far the content of one choice has come: `held` may be the beginning of a tag."""

    choice: int
    phase: str = "begin"
    """`begin`, `inside` the tags, `after` them where line breaks go, or `open`: all that follows is the answer."""
    held: str = ""


class _Fold(NamedTuple):
    reasoning: bool
    model: str
    events: int
    think: bool
    heads: tuple[_Head, ...]

    def feed(self, entry: Entry) -> Step:
        if entry.kind is Kind.USAGE:
            return Step((), self)
        think = self.think or bool(entry.note and json.loads(entry.note).get("think"))
        chunk, heads, choices = json.loads(entry.data), {head.choice: head for head in self.heads}, []
        for choice in chunk.get("choices") or ():
            index = choice.get("index", 0)
            delta = shown_delta(choice.get("delta") or {}, reasoning=self.reasoning)
            ended = choice.get("finish_reason")
            if think and not self.reasoning and isinstance(text := delta.get("content"), str):
                heads[index], delta["content"] = _outside(heads.get(index) or _Head(index), text)
            if ended and (head := heads.get(index)) is not None and head.phase == "begin" and head.held:
                delta["content"] = (delta.get("content") or "") + head.held  # it was no tag
                heads[index] = _Head(index, "open")
            choices.append({"index": index, "delta": delta, "finish_reason": ended})
        shown = {
            "id": chunk.get("id"),
            "object": "chat.completion.chunk",
            "created": chunk.get("created"),
            "model": self.model,
            "choices": choices,
        }
        fold = self._replace(events=self.events + 1, think=think, heads=tuple(heads.values()))
        return Step((sse.numbered_frame(json.dumps(shown), entry.position),), fold)

    def end(self, outcome: Outcome) -> Sequence[bytes]:
        done = sse.frame(sse.DONE, id=_SEAL_ID)
        error = outcome_error(outcome)
        return [_error_frame(shown_error(error), _SEAL_ID), done] if error else [done]

    def problem(self, problem: LogError) -> Sequence[bytes]:
        return [_error_frame(problem_error(problem).to_object()), sse.frame(sse.DONE)]


@cache
def shared_events(*, reasoning: bool) -> SharedEvents:
    """One for all viewers."""
    return SharedEvents(reasoning=reasoning)


def shown_delta(delta: Mapping[str, Any], *, reasoning: bool) -> dict[str, Any]:
    """A delta, or a message of an answer, with nothing but what is said."""
    shown = {name: delta[name] for name in _DELTA if delta.get(name) is not None}
    if "content" in delta:
        shown["content"] = _content(delta["content"], reasoning=reasoning)
    if reasoning:
        shown |= {name: delta[name] for name in _REASONING if isinstance(delta.get(name), str)}
    if isinstance(calls := delta.get("tool_calls"), list):
        shown["tool_calls"] = [_call(call) for call in calls if isinstance(call, dict)]
    if isinstance(call := delta.get("function_call"), dict):
        shown["function_call"] = _only(call, ("name", "arguments"))
    return shown


def shown_error(error: Mapping[str, Any]) -> ErrorObject:
    """A provider's words may repeat the request, and others name the tenant: kind and code are left."""
    return {"message": _HIDDEN, "type": str(error.get("type")), "param": None, "code": error.get("code")}


def shown_state(state: Mapping[str, Any], share: Share, root: str) -> dict[str, Any]:
    """A state object: how far the answer is, and nothing of who asked for it, how, and what it cost."""
    error, path = state["error"], f"{root}/v1/streams/{state['id']}"
    control = share["mode"] == "control"
    return {
        **{name: state[name] for name in _STATE},
        "error": {**shown_error(error), "status": error["status"]} if error else None,
        "share": {name: share[name] for name in ("id", "mode", "include", "expires_at")},
        "links": {"self": path, "cancel": f"{path}/cancel" if control else None},
    }


def shown_request(body: Mapping[str, Any], share: Share) -> dict[str, Any]:
    """The messages that the answer is to. What else the request has is its sender's."""
    reasoning = "reasoning" in share["include"]
    messages = [_message(one, reasoning=reasoning) for one in body.get("messages") or () if isinstance(one, dict)]
    return {"model": body.get("model"), "messages": messages}


def _message(message: Mapping[str, Any], *, reasoning: bool) -> dict[str, Any]:
    shown = shown_delta(message, reasoning=reasoning) | _only(message, _MESSAGE)
    if message.get("role") == "assistant":
        shown["content"] = _content(message.get("content"), reasoning=reasoning)
        if not reasoning and isinstance(shown["content"], str):
            shown["content"] = _outside(_Head(0), shown["content"])[1]
    return shown


def _content(content: Any, *, reasoning: bool) -> Any:
    if reasoning or not isinstance(content, list):
        return content
    return [part for part in content if isinstance(part, dict) and not _is_thought(part)]


def _is_thought(part: Mapping[str, Any]) -> bool:
    return part.get("type") in ("thinking", "reasoning", "redacted_thinking") or any(map(part.get, REASONING_FIELDS))


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    shown = _only(call, ("index", "id", "type"))
    for kind, fields in (("function", ("name", "arguments")), ("custom", ("name", "input"))):
        if isinstance(inner := call.get(kind), dict):
            shown[kind] = _only(inner, fields)
    return shown


def _only(fields: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: fields[name] for name in names if name in fields}


def _outside(head: _Head, text: str) -> tuple[_Head, str]:
    """What of the next piece of content is the answer: not what stands in tags at its start."""
    phase, text = head.phase, head.held + text
    if phase == "begin":
        begun = text.lstrip()
        if not begun.startswith(_OPEN):
            if _OPEN.startswith(begun):
                return _Head(head.choice, phase, text), ""
            return _Head(head.choice, "open"), text
        phase, text = "inside", begun[len(_OPEN) :]
    if phase == "inside":
        _, closed, after = text.partition(_CLOSE)
        if not closed:
            return _Head(head.choice, phase, text[-(len(_CLOSE) - 1) :]), ""
        phase, text = "after", after
    if phase == "after":
        text = text.lstrip("\n")
        phase = "open" if text else phase
    return _Head(head.choice, phase), text


def _error_frame(error: ErrorObject, frame_id: bytes | None = None) -> bytes:
    return sse.frame(json.dumps({"error": error}), id=frame_id)
