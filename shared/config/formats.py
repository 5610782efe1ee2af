"""The wire formats a provider may speak, one row each, and what each of them adds to OpenAI's messages.

Here, because the API must know it as well as the worker: it adds an answer's deltas up, and keeps what a session needs. The
format itself is the file of the row's name in worker/providers/formats.
"""

from __future__ import annotations

from typing import NamedTuple


class WireFormat(NamedTuple):
    """Fields of a message that OpenAI has nothing like, under names of the format's own."""

    lists: tuple[str, ...] = ()
    """Lists. In deltas their items have an `index`, so that they can be added up; in a message they have none."""
    resent: tuple[str, ...] = ()
    """Those of them that the provider wants back to go on thinking: a session keeps them where it keeps reasoning."""


WIRE_FORMATS = {
    "openai": WireFormat(),
    "anthropic": WireFormat(
        lists=("thinking_blocks", "anthropic_blocks"), resent=("thinking_blocks", "anthropic_blocks")
    ),
    "gemini": WireFormat(lists=("gemini_parts",), resent=("gemini_parts",)),
    "ollama": WireFormat(),
    "cohere": WireFormat(lists=("cohere_citations",)),
    "responses": WireFormat(lists=("reasoning_items", "responses_items"), resent=("reasoning_items",)),
}
