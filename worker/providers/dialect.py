"""What a wire format has to bring: how a request is written, and how an answer's events become OpenAI's chunks.

A dialect is pure. It sees one request, or one event at a time; connections, retries and timers are worker/upstream's, and
what every chunk must look like (our id and model, the role once, choices in order, usage last) is worker/normalizer.py's.
So a translator only has to say, in OpenAI's words, what an event means.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from shared.lib import sse
from worker.providers import framing
from worker.providers.registry import Provider


class Call(NamedTuple):
    """One request to a provider: POST `body` as JSON to the base URL with `path` appended, and these headers."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]


class Decoder(Protocol):
    """Bytes in, events out: `framing.Decoder`, or one for another framing."""

    @property
    def refused(self) -> bool:
        """An event over the limit has come, after those that `feed` returned; feeding more raises sse.EventTooLarge."""
        ...

    def feed(self, data: bytes) -> list[sse.Event]: ...

    def close(self) -> list[sse.Event]: ...


class Translator(Protocol):
    """Reads one answer, from its first event to its last."""

    done: bool
    """The provider said that nothing more comes; whatever follows is ignored."""

    def feed(self, event: str, value: dict[str, Any]) -> list[dict[str, Any]]:
        """What an event means, as any number of objects shaped like OpenAI's chunks: `choices` (a list, perhaps empty),
        `usage` where one is known, and any field that has no place in OpenAI's format under its provider's own name.
        A choice's `finish_reason` is the provider's own word (finish.py says what it means), a call needs no id.

        `event` is the SSE event's name (empty if it has none), `value` its data. Raises UpstreamError for an error the
        provider reports; an `error` member at the top of `value` has been dealt with before.
        """
        ...


@dataclass(frozen=True, slots=True)
class Dialect:
    """One wire format. `call` raises BadRequest for what the provider could not be asked. `translator` makes a fresh one
    for each answer; None for OpenAI's own format."""

    call: Callable[[Provider, dict[str, Any], str], Call]
    translator: Callable[[], Translator] | None = None
    decoder: Callable[[int], Decoder] = framing.Decoder
    stream_types: frozenset[str] = frozenset(
        ("text/event-stream", "application/octet-stream", "text/plain", "application/json", "")
    )
    """Content types of an answer. Besides SSE's own: some send none, some proxies call every stream one of these, and who
    does not stream calls the whole answer JSON."""
    verbatim: Callable[[], Translator] | None = None
    """Instead of `translator`, for a client that speaks this format itself and has the provider's own events."""
    wire_format: str = "openai"
    """Its name, in shared/config/formats.py and in the table of finish.py."""
    summarises: bool = False
    """Whether what it gives as reasoning is a summary."""
