"""What a request goes on from: the response before it, and items that it names by their id.

Hidden here: that both are reads of the logs of earlier responses (shared/features/chains.py), of which only what a request has
to be checked against is read here: the worker reads what was said. A response with `store: false` can be polled while its log
is kept, and gone on from by the WebSocket that it was made through, and no more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Iterable
from typing import Any, NamedTuple

from api.errors import problem_error
from api.live.answer import accumulate
from api.services import Services
from api.surfaces.responses.conversations import calls_of
from api.surfaces.responses.events import ResponseEvents, ResponseFold
from api.surfaces.responses.verbatim import cipher_for, cipher_of, view_of
from shared.errors import BadRequest, NotFound
from shared.features.chains import Link
from shared.features.responses import ids
from shared.features.responses.carried import Carried, added_up
from shared.features.responses.items import OUTPUTS, Calls, Item, Message, as_items, have_outputs, to_items
from shared.features.responses.namespaces import with_own_name
from shared.features.responses.request import TERMS, ResponsesRequest
from shared.generations.caller import Caller
from shared.lib import json
from shared.log.entry import Status
from shared.log.records import Header, Summary, response_id

_FOLDED_AT_ONCE = 1000
_SHOWN = 80
"""Characters of an id that an error repeats."""


class Found(NamedTuple):
    """A response's generation: its summary, its request as a chat, and how it is shown."""

    summary: Summary
    body: dict[str, Any]
    events: ResponseEvents

    @property
    def asked(self) -> list[Message]:
        """The messages of its own `input`, without its instructions."""
        messages: list[Message] = self.body["messages"]
        terms = self.body[TERMS]
        return messages[bool(terms.get("instructions")) :]


class Before(NamedTuple):
    """What a request goes on from."""

    generations: list[str]
    """The nearest first."""
    tokens: int
    """Of all of it, as the nearest was counted when it ended."""


NOTHING = Before([], 0)


class Continued(NamedTuple):
    """What a request needs of what was before it."""

    previous: Before
    items: list[Item]
    """Its own, without references."""
    calls: Calls
    """Calls that it answers, of the responses before it."""
    thoughts: dict[str, Message]
    """By generation: the provider's own messages, with the reasoning that it wants back while tools are called."""


async def find(services: Services, caller: Caller, response_id: str) -> Found:
    """A response. Raises NotFound: it is unknown, another tenant's, or was asked for through another API."""
    unknown = NotFound("There is no response with this id. It may have expired, or belong to another tenant.")
    generation_id = ids.generation_id(response_id)
    if generation_id is None:
        raise unknown
    try:
        summary, body = await services.broker.request(generation_id, caller)
    except NotFound:
        raise unknown from None
    if summary.header.get("surface") != "responses":
        raise unknown
    return Found(summary, body, view_of(summary.header, body, await cipher_for(services, caller.tenant, body)))


async def folded(events: ResponseEvents, header: Header, chunks: Iterable[bytes]) -> ResponseFold:
    """What these chunks amount to, by the same fold that streams are made with: an item has one id everywhere."""
    fold = events.begin(header)
    for number, chunk in enumerate(chunks, 1):
        fold = fold.take(chunk)
        if not number % _FOLDED_AT_ONCE:
            await asyncio.sleep(0)
    return fold


async def continued(
    services: Services, caller: Caller, request: ResponsesRequest, known: Container[str] = ()
) -> Continued:
    """What the request goes on from; `known` are responses that may be gone on from although they are not stored. Raises
    NotFound and BadRequest that name the field."""
    previous = NOTHING
    if request.previous_response_id is not None:
        _, previous = await _continuing(services, caller, request, known)
    items = await _without_references(services, caller, request.items, known)
    items, carried = await _carried(services, caller, items)
    calls = await _answered(services, caller, previous.generations, items)
    if request.conversation_id is not None:
        calls = await _conversed(services, caller, request.conversation_id, items)
    return Continued(previous, items, calls, await _thoughts(services, caller, request, items, carried))


async def continued_natively(
    services: Services, caller: Caller, request: ResponsesRequest, known: Container[str] = ()
) -> tuple[Before, str | None]:
    """The same where the provider speaks this API: what it goes on from, and what the provider itself calls the nearest, if it
    keeps that."""
    if request.conversation_id is not None:
        await _conversed(services, caller, request.conversation_id, [])
    if request.previous_response_id is None:
        return NOTHING, None
    found, previous = await _continuing(services, caller, request, known)
    native = found.body[TERMS].get("native")
    outcome = found.summary.outcome
    answered_by = outcome.get("served", {}).get("model") if outcome else None
    if native is None or answered_by != request.model or native.get("store") is False:
        return previous, None  # of a name of one's own, another provider may be the one that answers now
    chunks, _ = await services.broker.chunks(found.summary.header, found.summary.position.epoch)
    for chunk in reversed(chunks):
        if known := json.loads(chunk).get("responses"):
            return Before([], previous.tokens), known.get("id")
    return previous, None


async def _continuing(
    services: Services, caller: Caller, request: ResponsesRequest, known: Container[str]
) -> tuple[Found, Before]:
    """A response that is gone on from, and all that stands before the new one: they are kept as long as that."""
    assert request.previous_response_id is not None
    found = await _previous(services, caller, request.previous_response_id, known)
    settings = services.settings
    stored_s = 0 if request.store is False else settings.stored_retention_s
    kept_s = settings.log_safety_s + max(settings.retention_s, stored_s)
    outcome = found.summary.outcome
    tokens = outcome["usage"].get("total_tokens") if outcome else None
    generations = await services.chains.keep(caller.tenant, found.summary.header["id"], int(kept_s * 1000))
    return found, Before(generations, tokens if isinstance(tokens, int) else 0)


def input_items(found: Found) -> list[Item]:
    """The items of a response's own input, each with an id."""
    native, generation_id = found.body[TERMS].get("native"), found.summary.header["id"]
    if native is None:
        return [with_own_name(item, found.events.names) for item in to_items(found.asked, generation_id)]
    items = []
    for number, item in enumerate(as_items(native.get("input") or [])):
        kind = item.get("type") or "message"
        item_id = ids.item_id(kind, generation_id, ids.FIRST_INPUT + number)
        items.append({"type": kind, **item, "id": item.get("id") or item_id})
    return items


async def _answered(services: Services, caller: Caller, previous: list[str], items: list[Item]) -> Calls:
    """The calls before that these items have outputs of, by all ids they have. Mostly they are in the nearest response."""
    wanted = {item["call_id"] for item in items if item.get("type") in OUTPUTS and isinstance(item.get("call_id"), str)}
    wanted -= {item.get(name) for item in items if item.get("type") in OUTPUTS.values() for name in ("id", "call_id")}
    found: dict[tuple[str, str], str] = {}
    if previous and wanted:
        async for link in services.chains.links(caller.tenant, previous, at_first=1):
            events = view_of(link.header, link.body)
            for item in [*to_items(link.asked, link.header["id"]), *await _said(events, link)]:
                if item["type"] in OUTPUTS.values():
                    found |= {(item["type"], item[name]): item["call_id"] for name in ("id", "call_id")}
            if wanted <= {name for _, name in found}:
                break
    return found


async def _conversed(services: Services, caller: Caller, conversation_id: str, items: list[Item]) -> Calls:
    """The calls of the conversation, where these items may need them. It has to be there."""
    try:
        if have_outputs(items):
            return await calls_of(services, caller, conversation_id)
        await services.conversations.find(conversation_id, caller)
    except NotFound:
        raise NotFound(
            f"Conversation with id '{conversation_id[:_SHOWN]}' not found. Make one with POST /v1/conversations.",
            param="conversation",
        ) from None
    return {}


async def _said(events: ResponseEvents, link: Link) -> list[Item]:
    fold = await folded(events, link.header, link.chunks)
    status = Status(link.outcome["status"]) if link.outcome else Status.IN_PROGRESS
    return _finished(fold.whole(link.outcome, status)["output"])


async def _carried(services: Services, caller: Caller, items: list[Item]) -> tuple[list[Item], list[Carried]]:
    """What reasoning items carry that was encrypted here; and the items, each of those with an id of the generation that it is
    of, which some clients take off. Raises BadRequest."""
    found: list[Carried] = []
    named: list[Item] = []
    for number, item in enumerate(items):
        text = item.get("encrypted_content")
        if item.get("type") == "reasoning" and isinstance(text, str):
            cipher = await cipher_of(services, caller.tenant)
            one = cipher.decrypt(text, f"input[{number}].encrypted_content")
            if one is not None:
                found.append(one)
                item = {**item, "id": item.get("id") or ids.item_id("reasoning", one.generation_id, 0)}
        named.append(item)
    return named, found


async def _thoughts(
    services: Services, caller: Caller, request: ResponsesRequest, items: list[Item], carried: list[Carried]
) -> dict[str, Message]:
    """What the model said itself since the last user's message, in which it may be thinking still: providers sign their
    reasoning, and some refuse a tool's output without it. Another model is given none of it. Where the log is gone, it is what
    the items carry."""
    found: dict[str, Message] = {}
    for item in reversed(items):
        if item.get("role") == "user":
            break
        place = ids.place(item["id"]) if isinstance(item.get("id"), str) else None
        if place is None or place.generation_id in found:
            continue
        try:
            answered = await find(services, caller, response_id(place.generation_id))
        except NotFound:
            mine = [one for one in carried if one.generation_id == place.generation_id and one.model == request.model]
            if mine:
                found[place.generation_id] = added_up([one.delta for one in mine])
            continue
        summary = answered.summary
        if summary.header["model"] == request.model and summary.outcome is not None:
            chunks, _ = await services.broker.chunks(summary.header, summary.position.epoch)
            for message in (await accumulate(chunks)).messages[:1]:
                found[place.generation_id] = message
    return found


async def _previous(services: Services, caller: Caller, response_id: str, known: Container[str]) -> Found:
    unknown = NotFound(
        f"Previous response with id '{response_id[:_SHOWN]}' not found. Send the whole conversation as input.",
        code="previous_response_not_found",
        param="previous_response_id",
    )
    try:
        found = await find(services, caller, response_id)
    except NotFound:
        raise unknown from None
    if found.events.echoed["store"] is False and response_id not in known:
        raise unknown
    status = found.summary.status
    if status in (Status.QUEUED, Status.IN_PROGRESS, Status.FAILED):
        raise BadRequest(
            f"The previous response is {status}: only one that has ended with an answer can be continued.",
            param="previous_response_id",
        )
    return found


async def _output(services: Services, found: Found) -> list[Item]:
    """The items of its answer; a call that was cut is none."""
    summary = found.summary
    chunks, damage = await services.broker.chunks(summary.header, summary.position.epoch)
    if damage is not None:
        raise problem_error(damage)
    fold = await folded(found.events, summary.header, chunks)
    return _finished(fold.whole(summary.outcome, summary.status)["output"])


def _finished(items: list[Item]) -> list[Item]:
    return [item for item in items if item["status"] == "completed" or not item["type"].endswith("call")]


async def _without_references(
    services: Services, caller: Caller, items: list[Item], known_responses: Container[str]
) -> list[Item]:
    """The items, those that are only named looked up in the responses that they were a part of."""
    outputs: dict[str, dict[str, Item]] = {}
    whole = []
    for number, item in enumerate(items):
        kind = item.get("type")
        if kind != "item_reference" and (kind is not None or "role" in item or "id" not in item):
            whole.append(item)
            continue
        item_id = item.get("id")
        place = ids.place(item_id) if isinstance(item_id, str) else None
        if place is not None and place.generation_id not in outputs:
            outputs[place.generation_id] = await _named(services, caller, place.generation_id, known_responses)
        known = outputs[place.generation_id] if place is not None else {}
        if item_id not in known:
            raise NotFound(
                f"Item with id '{str(item_id)[:_SHOWN]}' not found. Items are kept as long as their response, and not where "
                "`store` was false. Send the item itself.",
                param=f"input[{number}].id",
            )
        whole.append(known[item_id])
    return whole


async def _named(
    services: Services, caller: Caller, generation_id: str, known_responses: Container[str]
) -> dict[str, Item]:
    """All items of a response, by their id: of its input, and of its answer."""
    named = response_id(generation_id)
    try:
        found = await find(services, caller, named)
    except NotFound:
        return {}
    if found.events.echoed["store"] is False and named not in known_responses:
        return {}
    items = [*input_items(found), *await _output(services, found)]
    return {item["id"]: item for item in items}
