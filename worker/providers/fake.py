"""Models that need no key and no network, and always say the same: for demos, tests and first steps.

    fake/echo     says the last user message back, word by word, white space included
    fake/lorem    says words; token i is the same in every run

Options follow the name like a query, `fake/lorem?tokens=200&rate=50`:

    tokens=N      how many tokens each choice says (lorem: 50 if not given; echo: the words, repeated if N is more)
    rate=R        tokens per second and choice; 0, the default, is as fast as possible
    reasoning=N   tokens of `reasoning_content` before the first word (0)
    first_ms=N    milliseconds before anything comes (0)
    error=STATUS  refuses with this HTTP status (400 to 599) instead of answering
    cut=K         the stream breaks off after K tokens, with neither finish reason nor [DONE]

Asked for embeddings, they give each text a vector of its own, the same in every run: `dimensions` numbers, 8 if not given.

`n` of the request is honoured. `max_completion_tokens` (or `max_tokens`) ends an answer with `length`; reasoning counts.
Usage: prompt tokens are the words of all messages, completion tokens those that were sent.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from shared.chat.whole import FIELD
from shared.errors import BadRequest
from shared.lib import json, sse
from worker.providers.errors import error_from_response
from worker.providers.formats.embeddings import PATH, texts_of, written
from worker.providers.registry import FAKE

_DEFAULT_TOKENS = 50
_DIMENSIONS, _MOST_DIMENSIONS = 8, 4096
_WORD = re.compile(r"\S+\s*|\s+")
_LOREM = _WORD.findall(
    "lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt ut labore et dolore magna "
    "aliqua enim ad minim veniam quis nostrud exercitation ullamco laboris nisi aliquip ex ea commodo consequat duis "
    "aute irure in reprehenderit voluptate velit esse cillum eu fugiat nulla pariatur excepteur sint occaecat cupidatat "
    "non proident sunt culpa qui officia deserunt mollit anim id est laborum "
)

_Options = dict[str, tuple[Callable[[str], float], float, float]]
_OPTIONS: _Options = {
    "tokens": (int, 0, 1_000_000),
    "rate": (float, 0, 1_000_000),
    "reasoning": (int, 0, 1_000_000),
    "first_ms": (int, 0, 3_600_000),
    "error": (int, 400, 599),
    "cut": (int, 0, 1_000_000),
}


@dataclass(frozen=True, slots=True)
class FakeScript:
    """A fake model's name, taken apart. `rate` is in tokens per second, 0 for no pause; None means not asked for."""

    voice: str
    tokens: int | None = None
    rate: float = 0.0
    reasoning: int = 0
    first_ms: int = 0
    error: int | None = None
    cut: int | None = None


def parse_model(model: str) -> FakeScript:
    """`lorem?tokens=5` (or `fake/lorem?tokens=5`) as a script. Raises BadRequest that names what is allowed."""
    voice, _, query = model.removeprefix(f"{FAKE.name}/").partition("?")
    if voice not in FAKE.models:
        raise _refuse(f"The fake models are {' and '.join(FAKE.model_ids)}.", code="model_not_found")
    options: dict[str, Any] = {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        pairs = [("", "")]
    for name, text in pairs:
        if name not in _OPTIONS or name in options:
            raise _refuse(f"A fake model takes {', '.join(_OPTIONS)}, each once, as NAME=NUMBER joined by `&`.")
        number, least, most = _OPTIONS[name]
        try:
            value = number(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise _refuse(f"The fake models' option {name} must be a number from {least} to {most}.")
        options[name] = value
    return FakeScript(voice, **options)


def script(body: dict[str, Any], model: str) -> Iterator[tuple[float, sse.Event]]:
    """The whole answer, as `(seconds after the event before it, event)`, in the form OpenAI sends it.

    Raises BadRequest for a bad model name, UpstreamRefused for `error=`; both at once, not at the first event.
    """
    asked = parse_model(model)
    if asked.error is not None:
        refusal = {"error": {"message": "refused, as asked for by error=", "type": "fake_error", "code": "fake_error"}}
        raise error_from_response(FAKE, asked.error, {}, json.dumps(refusal))
    if (whole := body.get(FIELD)) is not None:
        return _embeddings(asked, whole, model)
    return _events(asked, body, model)


def _embeddings(asked: FakeScript, whole: dict[str, Any], model: str) -> Iterator[tuple[float, sse.Event]]:
    if whole["path"] != PATH:
        raise _refuse("The fake models answer chats and embed texts, and nothing else.")
    request = whole["body"]
    size = request.get("dimensions") or _DIMENSIONS
    if size > _MOST_DIMENSIONS:
        raise BadRequest(f"dimensions: The fake models have {_MOST_DIMENSIONS} at most.", param="dimensions")
    texts = texts_of(request)
    vectors = [written(_vector(text, size), request.get("encoding_format")) for text in texts]
    data = [{"object": "embedding", "index": at, "embedding": vector} for at, vector in enumerate(vectors)]
    count = sum(len(text.split()) for text in texts)
    usage = {"prompt_tokens": count, "total_tokens": count}
    found = {"object": "list", "data": data, "model": model, "usage": usage}
    return iter([(asked.first_ms / 1000, sse.Event(json.dumps(found)))])


def _vector(text: str, dimensions: int) -> list[float]:
    """Of length 1, by the hash of the text: each number is exact in 32 bits but for the length."""
    digest = hashlib.shake_128(text.encode()).digest(dimensions)
    numbers = [byte - 127.5 for byte in digest]
    length = math.sqrt(sum(number * number for number in numbers))
    return [number / length for number in numbers]


def _events(asked: FakeScript, body: dict[str, Any], model: str) -> Iterator[tuple[float, sse.Event]]:
    messages = [message for message in body.get("messages") or [] if isinstance(message, dict)]
    choices = range(body.get("n") or 1)
    words = _LOREM if asked.voice == "lorem" else _spoken(messages)
    length = asked.tokens if asked.tokens is not None else _DEFAULT_TOKENS if words is _LOREM else len(words)
    wanted = asked.reasoning + (length if words else 0)
    total = min(wanted, body.get("max_completion_tokens") or body.get("max_tokens") or wanted)
    head = {"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 0, "model": model}

    def event(**fields: Any) -> sse.Event:
        return sse.Event(json.dumps({**head, **fields}))

    def said(index: int, delta: dict[str, Any], finish: str | None = None) -> sse.Event:
        return event(choices=[{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}])

    for index in choices:
        yield (asked.first_ms / 1000 if index == 0 else 0.0), said(index, {"role": "assistant", "content": ""})
    pause = 1 / asked.rate if asked.rate else 0.0
    for token in range(total if asked.cut is None else min(total, asked.cut)):
        at = token - asked.reasoning
        delta = {"content": words[at % len(words)]} if at >= 0 else {"reasoning_content": _LOREM[token % len(_LOREM)]}
        for index in choices:
            yield (pause if index == 0 and token > 0 else 0.0), said(index, delta)
    if asked.cut is not None:
        return
    for index in choices:
        yield 0.0, said(index, {}, "stop" if total == wanted else "length")
    yield 0.0, event(choices=[], usage=_usage(messages, total, min(total, asked.reasoning), len(choices)))
    yield 0.0, sse.Event(sse.DONE)


def _usage(messages: list[dict[str, Any]], total: int, reasoning: int, choices: int) -> dict[str, Any]:
    prompt = sum(len(_text(message).split()) for message in messages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": total * choices,
        "total_tokens": prompt + total * choices,
        "completion_tokens_details": {"reasoning_tokens": reasoning * choices},
    }


def _spoken(messages: list[dict[str, Any]]) -> list[str]:
    last: dict[str, Any] = next((message for message in reversed(messages) if message.get("role") == "user"), {})
    return _WORD.findall(_text(last))


def _text(message: dict[str, Any]) -> str:
    """The words of a message; its content is a string, a list of parts, or null."""
    content = message.get("content")
    if not isinstance(content, list):
        return content if isinstance(content, str) else ""
    texts = (part.get("text") for part in content if isinstance(part, dict))
    return " ".join(text for text in texts if isinstance(text, str))


def _refuse(message: str, code: str | None = None) -> BadRequest:
    return BadRequest(message, code=code, param="model")
