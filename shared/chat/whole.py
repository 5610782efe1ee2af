"""Requests that are answered with one object and no words: embeddings, moderations, compactions.

Hidden here: that they are stored as chat requests without messages, with the request as it came in `whole`, and that the answer
stands in one chunk, as the provider gave it. So they wait, run, are counted and repeated as all others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, NamedTuple, Self

from pydantic import Field, StringConstraints, Tag, model_validator

from shared.chat.checking import Lenient, check, either, wrong
from shared.chat.request import ChatRequest
from shared.errors import BadRequest
from shared.lib import json

FIELD, ANSWER = "whole", "whole_answer"
"""Of a stored request, `{path, body}`; and of the chunk."""
_OPTIONS = ("on_interruption", "on_disconnect", "metadata")
"""What is ours of a request, and means something here."""
_REFUSED = ("stream", "background", "webhook", "session_id")

Model = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]


class EmbeddingsRequest(Lenient):
    """Body of POST /v1/embeddings (platform.openai.com/docs/api-reference/embeddings/create)."""

    model: Model
    input: Annotated[
        Annotated[str, Tag("<string>")] | Annotated[list[Any], Tag("<array>"), Field(min_length=1)],
        either("a string, or an array of strings or of tokens"),
    ]
    encoding_format: str | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None


class ModerationsRequest(Lenient):
    """Body of POST /v1/moderations. Its model is named here, as everywhere: `openai/omni-moderation-latest`."""

    model: Model
    input: Annotated[
        Annotated[str, Tag("<string>")] | Annotated[list[Any], Tag("<array>"), Field(min_length=1)],
        either("a string, or an array of strings or of parts"),
    ]


class CompactRequest(Lenient):
    """Body of POST /v1/responses/compact (platform.openai.com/docs/api-reference/responses/compact)."""

    model: Model
    input: str | list[Any] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None

    @model_validator(mode="after")
    def _has_something(self) -> Self:
        if not self.input and self.previous_response_id is None:
            raise wrong("input", "Input is required: the items, or previous_response_id in their place")
        return self


COMPACT = "/v1/responses/compact"
REQUESTS: dict[str, type[Lenient]] = {
    "/v1/embeddings": EmbeddingsRequest,
    "/v1/moderations": ModerationsRequest,
    COMPACT: CompactRequest,
}
"""By path."""


class Stored(NamedTuple):
    """Such a request in both forms."""

    request: ChatRequest
    body: dict[str, Any]


def to_stored(path: str, given: Any) -> Stored:
    """Raises BadRequest that names the field."""
    check(REQUESTS[path], given)
    for field in _REFUSED:
        if given.get(field):
            raise BadRequest(f"{field}: Not a field of this API, whose answers come whole.", param=field)
    options = {field: given[field] for field in _OPTIONS if given.get(field) is not None}
    own = {field: value for field, value in given.items() if field not in (*_OPTIONS, *_REFUSED) and value is not None}
    body = {"model": given["model"], "messages": [], **options, FIELD: {"path": path.removeprefix("/v1"), "body": own}}
    request = ChatRequest.check({"model": given["model"], "messages": [{"role": "user", "content": ""}], **options})
    return Stored(request, body)


def whole_answer(chunks: Iterable[bytes]) -> dict[str, Any] | None:
    """The answer, as the provider gave it; None as long as it has not come."""
    for chunk in chunks:
        if found := json.loads(chunk).get(ANSWER):
            answer: dict[str, Any] = found
            return answer
    return None
