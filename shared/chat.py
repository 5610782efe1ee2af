"""The chat wire format, OpenAI's: what a chunk is once normalized."""

from __future__ import annotations

from typing import NamedTuple


class Chunk(NamedTuple):
    """One normalized `chat.completion.chunk`, serialized once by the worker and never parsed again on the way out.

    `payload` is compact JSON without line breaks. `is_usage` marks the chunk that carries nothing but usage: it is
    always the last one, and shown only to requests with `stream_options.include_usage`.
    """

    payload: bytes
    is_usage: bool = False
