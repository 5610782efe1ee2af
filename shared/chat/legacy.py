"""/v1/completions, OpenAI's API from before there were chats: a prompt is gone on with.

Hidden here: that such an answer stands in the log as a chat's, text for text, so that it is streamed, resumed, counted and
ended as all others. The request as it came is in `whole`; the prompt is a message besides, by which it is measured where no
provider does.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, Tag

from shared.chat.checking import Lenient, check, either
from shared.chat.chunks import FOREIGN, Accumulator
from shared.chat.request import ChatRequest, StreamOptions
from shared.chat.whole import FIELD, Model, Stored
from shared.errors import BadRequest

PATH = "/completions"
_OPTIONS = ("on_interruption", "on_disconnect", "max_tokens_per_s", "metadata")
_REFUSED = ("background", "webhook", "session_id", "messages")


class CompletionsRequest(Lenient):
    """Body of POST /v1/completions (platform.openai.com/docs/api-reference/completions/create)."""

    model: Model
    prompt: Annotated[
        Annotated[str, Tag("<string>")] | Annotated[list[Any], Tag("<array>"), Field(min_length=1)],
        either("a string, or an array of strings or of tokens"),
    ]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None


def to_stored(given: Any) -> Stored:
    """Raises BadRequest that names the field."""
    asked = check(CompletionsRequest, given)
    for field in _REFUSED:
        if given.get(field):
            raise BadRequest(f"{field}: Not a field of this API.", param=field)
    options = {field: given[field] for field in (*_OPTIONS, "stream", "stream_options") if given.get(field) is not None}
    left_out = (*_OPTIONS, *_REFUSED, "stream", "stream_options")
    own = {field: value for field, value in given.items() if field not in left_out and value is not None}
    prompts = asked.prompt if isinstance(asked.prompt, list) else [asked.prompt]
    texts = [text for text in prompts if isinstance(text, str)]
    messages = [{"role": "user", "content": text} for text in texts] or [{"role": "user", "content": ""}]
    count = 1 if isinstance(prompts[0], int) else len(prompts)
    body = {"model": asked.model, "messages": messages, **options, "n": count * (asked.n or 1)}
    request = ChatRequest.check(body)
    return Stored(request, {**body, FIELD: {"path": PATH, "body": own}})


def chunk_object(completion_id: str, chunk: dict[str, Any]) -> dict[str, Any]:
    """A chat's chunk as one of this API."""
    top = {name: value for name, value in chunk.items() if name not in ("id", "object", "choices")}
    choices = [
        {
            **{name: value for name, value in choice.items() if name not in ("delta", "finish_reason", "logprobs")},
            "text": (choice.get("delta") or {}).get("content") or "",
            "logprobs": choice.get("logprobs"),
            "finish_reason": choice.get("finish_reason"),
        }
        for choice in map(_with_own_logprobs, chunk.get("choices") or ())
    ]
    return {"id": completion_id, "object": "text_completion", **top, "choices": choices}


def _with_own_logprobs(choice: dict[str, Any]) -> dict[str, Any]:
    """What this API calls `logprobs` is of another form than a chat's, and so stands beside them in its chunks."""
    foreign = choice.get(FOREIGN)
    if choice.get("logprobs") is not None or not isinstance(foreign, dict):
        return choice
    if not isinstance(told := foreign.get("logprobs"), dict):
        return choice
    rest = {name: value for name, value in foreign.items() if name != "logprobs"}
    own = {name: value for name, value in choice.items() if name != FOREIGN}
    return {**own, **({FOREIGN: rest} if rest else {}), "logprobs": told}


def whole_object(completion_id: str, created: int, model: str, fold: Accumulator) -> dict[str, Any]:
    """What a chat's chunks amount to, as this API has it."""
    found = chunk_object(completion_id, {"created": created, "model": model, **fold.result()})
    for choice, message in zip(found["choices"], fold.messages, strict=True):
        choice.pop("message", None)
        choice["text"] = message.get("content") or ""
    return found


def completion_id(generation_id: str) -> str:
    """The id by which this API knows a generation."""
    return f"cmpl-{generation_id.removeprefix('chatcmpl-')}"
