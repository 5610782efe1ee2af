"""A conversation as a provider can take it, whoever said what before: another provider, a broken answer, a session.

Hidden here: what in a history stops a provider though nobody can change it any more. Ids of calls in another alphabet, or used
twice; calls that were never answered, since the answer they stood in was cut; results whose call was cut off with the start;
names that no tool has; arguments that are no JSON; calls from before there were tools; roles, reasoning and media types in
another vendor's words. For example, Kimi's `functions.Bash:0` is `functions_Bash_0` for Claude, in the call and in its result.
The same history always becomes the same messages, and a longer one begins with them: providers cache prefixes.

Pure, and lenient: what has the wrong shape stays, for the format to refuse with its path. What a provider accepts is said in
accepts.py.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Iterator
from typing import Any

from shared.chat.messages import visible_text
from shared.lib import json
from worker.providers.accepts import REASONING_TEXTS, Accepts, CallIds

Message = dict[str, Any]

UNANSWERED = "There is no result: the call was not answered."
"""What a call that nobody answered is answered with: every provider wants a result for each call."""

LONE = "The result of a tool call that this conversation does not have:"
"""Before a result without its call, which the user tells then: most providers refuse such a result."""

BEGINNING = "(The beginning of this conversation was left out.)"
"""What the user says first where a format wants the user to begin, and the assistant does."""
UNNAMED = "unknown"
"""What a call of an earlier answer is called that has no name."""
_NO_NAME = re.compile(r"[^a-zA-Z0-9_-]")
_BETWEEN = "OK."
_DIGITS = string.digits + string.ascii_letters


def fitted(messages: list[Any], accepts: Accepts, *, functions: bool = False) -> list[tuple[Message, str]]:
    """The messages as this provider can take them, each with its path in the request. The given ones are not changed.

    What answers a call comes right after the message with the call, in its order, and so does what says that there is none.
    With `functions`, calls and results in the form from before there were tools stay in it.
    """
    ids, order = _NO_IDS, list(range(len(messages)))
    for message in messages:
        if isinstance(message, dict) and (message.get("role") in _ANSWERING or not _CALLING.isdisjoint(message)):
            messages = messages if functions else _without_functions(messages)
            ids = _Ids(messages, accepts.call_ids)
            order = ids.order
            break
    found: list[tuple[Message, str]] = []
    for at in order:
        message, param = messages[at], f"messages[{at}]"
        if not isinstance(message, dict):
            found.append((message, param))
            continue
        fit = {key: value for key, value in message.items() if value is not None or key == "content"}
        role = fit.get("role")
        if role == "developer" and not accepts.developer:
            fit["role"] = "system"
        if role == "tool" and at in ids.answers:
            fit["tool_call_id"] = ids.answers[at]
        elif role == "tool" and at in ids.lone and accepts.lone_results:
            fit["tool_call_id"] = ids.lone[at]
        elif role == "tool" and at in ids.lone:
            fit, role = {"role": "user", "content": _told(fit.get("content"))}, "user"
        if role == "assistant":
            _fit_assistant(fit, ids.calls.get(at, []), accepts)
        elif role == "user" and not accepts.user_after_tool and found and found[-1][0].get("role") == "tool":
            found.append(({"role": "assistant", "content": _BETWEEN}, param))
        if isinstance(fit.get("content"), list):
            fit["content"] = [_fit_part(part) for part in fit["content"]]
        found.append((fit, param))
        for call_id in ids.unanswered.get(at, ()) if at != order[-1] else ():
            found.append(({"role": "tool", "tool_call_id": call_id, "content": UNANSWERED}, param))
    return found


def _without_functions(messages: list[Any]) -> list[Any]:
    """`function_call`, and the role `function`, as calls and results of tools, each at its place. A result answers the newest
    call of its name that has none yet."""
    found: list[Any] = []
    waiting: list[tuple[Any, str]] = []
    for at, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role == "assistant" and isinstance(call := message.get("function_call"), dict):
            message = {key: value for key, value in message.items() if key != "function_call"}
            calls = message.get("tool_calls") or []
            if not any(isinstance(one, dict) and one.get("function") == call for one in calls):  # some tell it twice
                waiting.append((call.get("name"), f"function_{at}"))
                made = {"id": waiting[-1][1], "type": "function", "function": call}
                message["tool_calls"] = [*calls, made]
        elif role == "function":
            name = message.get("name")
            answered = next((one for one in reversed(waiting) if name is None or one[0] == name), None)
            if answered is None:
                message = {"role": "user", "content": _told(message.get("content"))}
            else:
                waiting.remove(answered)
                message = {"role": "tool", "tool_call_id": answered[1], "content": message.get("content") or ""}
        found.append(message)
    return found


def _told(content: Any) -> Any:
    """What a result says, for the user to say; what has the wrong shape stays."""
    if content is None or isinstance(content, str):
        return f"{LONE}\n{content or '(nothing)'}"
    return [{"type": "text", "text": LONE}, *content] if isinstance(content, list) else content


def _fit_assistant(message: Message, ids: list[str], accepts: Accepts) -> None:
    """Calls with their new ids, and reasoning out of the content where that may not hold it."""
    calls = message.get("tool_calls")
    if calls == []:
        del message["tool_calls"]  # an empty list says nothing, and OpenAI refuses it
    elif isinstance(calls, list):
        renamed = iter(ids)
        message["tool_calls"] = [
            _named({**call, "id": next(renamed)}) if isinstance(call, dict) else call for call in calls
        ]
    content = message.get("content")
    if not isinstance(content, list):
        return
    kept = [part for part in content if not _is_foreign(part, accepts.thinking_parts)]
    if len(kept) < len(content):
        reasoning = visible_text(message).reasoning
        message["content"] = kept or (None if message.get("tool_calls") else "")
        if reasoning and not any(message.get(field) for field in REASONING_TEXTS):
            message["reasoning_content"] = reasoning


def _named(call: dict[str, Any]) -> dict[str, Any]:
    """Models make names up, such as `functions.run<|channel|>json`, and nobody takes them back: OpenAI's and Claude's names
    have letters, digits, `_` and `-`."""
    for kind in ("function", "custom"):
        called = call.get(kind)
        name = called.get("name") if isinstance(called, dict) else None
        if isinstance(name, str) and (not name or _NO_NAME.search(name)):
            return {**call, kind: {**called, "name": _NO_NAME.sub("_", name) or UNNAMED}}  # type: ignore[dict-item]
    return call


def _is_foreign(part: Any, form: str | None) -> bool:
    """Whether a part is reasoning in another vendor's form."""
    if not isinstance(part, dict) or part.get("type") not in ("thinking", "redacted_thinking"):
        return False
    if form == "signed":
        return not (part.get("signature") or part.get("data"))
    return not isinstance(part.get("thinking"), {"list": list, "text": str}.get(form or "", ()))


def _fit_part(part: Any) -> Any:
    """A picture's URL as an object, which all know; Mistral takes the bare URL, too."""
    image = part.get("image_url") if isinstance(part, dict) and part.get("type") == "image_url" else None
    if isinstance(image, str):
        return {**part, "image_url": {"url": media_url(image)}}
    if isinstance(image, dict) and isinstance(url := image.get("url"), str) and media_url(url) != url:
        return {**part, "image_url": {**image, "url": media_url(url)}}
    return part


def media_url(url: str) -> str:
    """A `data:` URL with the media type spelled as registered: lower case (RFC 2045 5.1), and image/jpeg, not image/jpg."""
    if url[:5].lower() != "data:":
        return url
    head, comma, data = url.partition(",")
    media_type, *options = head[5:].split(";")
    media_type = media_type.strip().lower()
    spelled = _OTHER_TYPES.get(media_type, media_type)
    options = [option.strip().lower() for option in options]
    if "base64" in options and any(white in data for white in _WHITE):  # lines, as MIME has them
        data = "".join(data.split())
    return ";".join(("data:" + spelled, *options)) + comma + data


_WHITE = " \t\r\n"
_OTHER_TYPES = {"image/jpg": "image/jpeg", "image/pjpeg": "image/jpeg", "image/x-png": "image/png"}


def arguments(written: Any) -> dict[str, Any]:
    """The arguments of an earlier call as an object. A model that calls without any often says nothing instead of `{}`; what
    is no object, being cut off or never having been one, is kept under `arguments`: what the tool said tells the rest."""
    if written is None or (isinstance(written, str) and not written.strip()):
        return {}
    value = written
    if isinstance(written, str):
        try:
            value = json.loads(written.encode())
        except ValueError:
            value = written
    if value is None:
        return {}
    return value if isinstance(value, dict) else {"arguments": written}


def arguments_text(written: Any, *, raw: bool) -> str:
    """The same as JSON; with `raw`, text stays as the model wrote it."""
    if isinstance(written, str) and written.strip():
        value = arguments(written)
        if raw or value != {"arguments": written}:
            if not raw and ("NaN" in written or "Infinity" in written):  # Python's, and no JSON
                return json.dumps(value).decode()
            return "{}" if written.strip() == "null" else written
    return json.dumps(arguments(written)).decode()


class _Ids:
    """Which result answers which call, and under which id both go.

    A result answers the newest call with its id that has no result yet; one without an id, the oldest of the last calls.
    """

    def __init__(self, messages: list[Any], accepted: CallIds) -> None:
        self.calls: dict[int, list[str]] = {}
        """By a message's place: the new ids of its calls, in their order."""
        self.answers: dict[int, str] = {}
        """By a result's place: the new id of the call it answers."""
        self.lone: dict[int, str] = {}
        """The same of results whose call is not there, or has a result already."""
        self.unanswered: dict[int, list[str]] = {}
        self.order: list[int] = []
        """The places of all messages, results moved to their calls: most providers refuse what stands between."""
        self._asked: dict[int, int] = {}
        self._accepted, self._used = accepted, set[str]()
        waiting: dict[int, list[tuple[str, str]]] = {}  # the old and the new id of calls without a result
        for at, message in enumerate(messages):
            if calls := list(_calls(message)):
                olds = [_id(call) for call in calls]
                self.calls[at] = [self._new(old) for old in olds]
                waiting[at] = list(zip(olds, self.calls[at], strict=True))
            elif isinstance(message, dict) and message.get("role") == "tool":
                self._answer(at, message.get("tool_call_id"), waiting)
        self.unanswered = {at: [new for _, new in pairs] for at, pairs in waiting.items() if pairs}
        results: dict[int, list[int]] = {}
        for at, asked in self._asked.items():
            results.setdefault(asked, []).append(at)
        for at in range(len(messages)):
            if at not in self._asked:
                self.order += [at, *results.get(at, ())]

    def _answer(self, at: int, old: Any, waiting: dict[int, list[tuple[str, str]]]) -> None:
        for asked, pairs in reversed(waiting.items()):
            for pair in pairs:
                if pair[0] == old or not old:
                    pairs.remove(pair)
                    self.answers[at] = pair[1]
                    self._asked[at] = asked
                    return
        if isinstance(old, str) and old:
            self.lone[at] = self._spelled(old)

    def _new(self, old: str) -> str:
        """The id itself where it fits, and is the first of its kind."""
        spelled = self._spelled(old) if old else self._short("call", 1)
        new, number = spelled, 1
        while new in self._used:
            number += 1
            new = self._short(old or "call", number)
        self._used.add(new)
        return new

    def _spelled(self, old: str) -> str:
        alphabet, least, most = self._accepted
        spelled = re.sub(f"[^{re.escape(alphabet)}]", "_" if "_" in alphabet else "", old) if alphabet else old
        return spelled if least <= len(spelled) <= most and (spelled == old or least == 1) else self._short(old, 1)

    def _short(self, old: str, number: int) -> str:
        """A name made from the id and a number: readable where there is room for it, else a digest."""
        alphabet, least, most = self._accepted
        readable = re.sub(f"[^{re.escape(alphabet)}]", "_", old) if "_" in alphabet else old
        named = f"{readable}_{number}"
        if least <= len(named) <= most and (not alphabet or "_" in alphabet):
            return named
        value, digits = int.from_bytes(hashlib.sha256(f"{number}:{old}".encode()).digest(), "big"), ""
        while len(digits) < max(least, min(most, 24)):
            value, rest = divmod(value, len(_DIGITS))
            digits += _DIGITS[rest]
        return digits


def _calls(message: Any) -> Iterator[dict[str, Any]]:
    calls = message.get("tool_calls") if isinstance(message, dict) and message.get("role") == "assistant" else None
    return (call for call in calls if isinstance(call, dict)) if isinstance(calls, list) else iter(())


_NO_IDS = _Ids([], CallIds())
_ANSWERING, _CALLING = ("tool", "function"), frozenset(("tool_calls", "function_call"))
"""What a conversation has none of in which nothing was called."""


def _id(call: dict[str, Any]) -> str:
    value = call.get("id")
    return value if isinstance(value, str) else ""
