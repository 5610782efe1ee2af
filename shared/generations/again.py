"""A generation that is asked for again: what one that has ended was asked, as a new one in the background.

Hidden here: what of a request does not stand in its body, because it came in header fields, and that nothing large is read for
it: what stands in the file storage is named again.
"""

from __future__ import annotations

from typing import Any

from shared.chat.request import ChatRequest
from shared.errors import BadRequest
from shared.generations.broker import Broker, Submitted
from shared.generations.caller import Caller
from shared.generations.front import Front
from shared.lib import json
from shared.log.records import Header

_OPTIONS = ("on_interruption", "max_tokens_per_s", "session_id")


async def again(broker: Broker, generation_id: str, caller: Caller, key: str | None = None) -> Submitted:
    """The new one, whose header names the other in `retried_from`; `key` is an idempotency key. A webhook is called again, and
    a session has another turn. Raises NotFound; BadRequest for one that has not ended, or that was not asked as a chat; and
    what `Broker.submit` raises."""
    summary = await broker.find(generation_id, caller)
    if summary.outcome is None:
        raise BadRequest("This generation has not ended. Wait for its end, or cancel it first.", code="not_ended")
    if summary.header.get("surface", "chat") != "chat":
        raise BadRequest(
            "This was asked for through another API than chat completions: ask again there.", code="not_a_chat"
        )
    body = await broker.body_with_marks(generation_id, caller)
    request = ChatRequest.check({**_options(summary.header), **json.loads(body), "background": True})
    front = Front("chat", retried_from=generation_id)
    return await broker.submit(body, request, caller, idempotency_key=key, front=front)


def _options(header: Header) -> dict[str, Any]:
    return {name: value for name in _OPTIONS if (value := header.get(name)) is not None}
