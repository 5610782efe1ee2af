"""/v1/conversations: OpenAI's Conversations, which are sessions; a session of chat can be read as one by its id.

Hidden here: that a session keeps messages, of which an item is one, or a part of one. An item's id names its turn and its place
there, so it stays the same whatever is deleted around it, and an answer's items have the ids that they had in the response.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from api.deps import REPLAYED, Body, CurrentCaller, CurrentServices, IdempotencyKey, known_query, parsed
from api.paging import following, page
from api.services import Services
from api.surfaces.responses.apart import read_apart
from shared.chat.checking import Lenient, check
from shared.chat.request import Metadata
from shared.errors import NotFound
from shared.features.conversations import Given, Turn, without
from shared.features.responses.items import OUTPUTS, Calls, Item, Placed, have_outputs, placed, to_messages
from shared.features.responses.namespaces import own_names_of, with_flat_name, with_own_name
from shared.generations.caller import Caller
from shared.lib import json

router = APIRouter(prefix="/v1/conversations", tags=["conversations"])

Items = Annotated[list[dict[str, Any]], Field(max_length=20)]
Include = Annotated[list[str] | None, Query(alias="include[]", description="read, and changes nothing")]


class NewConversation(Lenient):
    """Body of POST /v1/conversations (platform.openai.com/docs/api-reference/conversations/create)."""

    items: Items | None = None
    metadata: Metadata | None = None


class NewItems(Lenient):
    """Body of POST /v1/conversations/{id}/items."""

    items: Items


class NewMetadata(Lenient):
    """Body of POST /v1/conversations/{id}."""

    metadata: Metadata | None


class Found(NamedTuple):
    """An item, and the turn that it is a part of."""

    turn: Turn
    place: Placed

    @property
    def item(self) -> Item:
        return self.place.item


def _schema(model: type[Lenient], *, required: bool = True) -> dict[str, Any]:
    return {
        "requestBody": {"required": required, "content": {"application/json": {"schema": model.model_json_schema()}}}
    }


def items_of(turn: Turn) -> list[Found]:
    """The items of a turn."""
    count = len(turn.messages) - (turn.generated and turn.messages[-1]["role"] in ("assistant", "deleted"))
    asked = placed(turn.messages[:count], turn.generation_id)
    said = placed(turn.messages[count:], turn.generation_id, turn.first)
    found = [*asked, *(one._replace(message=one.message + count) for one in said)]
    return [Found(turn, one._replace(item=with_own_name(one.item, turn.names))) for one in found]


def _given(items: list[Item], calls: Calls | None = None) -> Given:
    """What items add. Raises BadRequest."""
    return Given(to_messages(list(map(with_flat_name, items)), path="items", calls=calls), own_names_of(items))


async def all_items(services: Services, caller: Caller, conversation_id: str) -> list[Found]:
    """The items of all turns, in their order. Raises NotFound."""
    turns = await services.conversations.turns(conversation_id, caller)
    return [found for turn in turns for found in items_of(turn)]


async def calls_of(services: Services, caller: Caller, conversation_id: str) -> Calls:
    """The calls in a conversation, by all ids they have. Raises NotFound."""
    items = [found.item for found in await all_items(services, caller, conversation_id)]
    calls = [item for item in items if item["type"] in OUTPUTS.values()]
    return {(item["type"], item[name]): item["call_id"] for item in calls for name in ("id", "call_id")}


async def _found(services: Services, caller: Caller, conversation_id: str, item_id: str) -> Found:
    for found in await all_items(services, caller, conversation_id):
        if found.item["id"] == item_id:
            return found
    raise NotFound("There is no item with this id in this conversation.")


async def _shown(services: Services, caller: Caller, value: Any) -> Response:
    text = await services.blobs.filled(caller.tenant, json.dumps(value))
    return Response(text, media_type="application/json")


@router.post("", openapi_extra=_schema(NewConversation, required=False))
async def create(
    services: CurrentServices, caller: CurrentCaller, key: IdempotencyKey, body: Body, response: Response
) -> dict[str, Any]:
    """Makes a conversation, with items or without."""
    value, cut = await read_apart(services, body or b"{}")
    given = check(NewConversation, value)
    added, metadata = _given(given.items or []), given.metadata or {}
    made, replayed = await services.conversations.create(caller, metadata, added, cut, idempotency_key=key)
    response.headers.update(REPLAYED if replayed else {})
    return made


@router.get("/{conversation_id}")
async def retrieve(services: CurrentServices, caller: CurrentCaller, conversation_id: str) -> dict[str, Any]:
    """A conversation."""
    return await services.conversations.find(conversation_id, caller)


@router.post("/{conversation_id}", openapi_extra=_schema(NewMetadata))
async def update(services: CurrentServices, caller: CurrentCaller, conversation_id: str, body: Body) -> dict[str, Any]:
    """Gives it other metadata."""
    metadata = check(NewMetadata, parsed(body)).metadata
    return await services.conversations.replace_metadata(conversation_id, caller, metadata or {})


@router.delete("/{conversation_id}")
async def delete(services: CurrentServices, caller: CurrentCaller, conversation_id: str) -> dict[str, Any]:
    """Cancels what runs in it, and forgets it with its items. Its responses stay."""
    await services.sessions.delete(conversation_id, caller)
    return {"id": conversation_id, "object": "conversation.deleted", "deleted": True}


@router.post("/{conversation_id}/items", response_model=None, openapi_extra=_schema(NewItems))
async def create_items(
    services: CurrentServices,
    caller: CurrentCaller,
    conversation_id: str,
    key: IdempotencyKey,
    body: Body,
    include: Include = None,
) -> Response:
    """Adds items at the end."""
    value, cut = await read_apart(services, body)
    items = check(NewItems, value).items
    calls: Calls = {}
    if have_outputs(items, "items"):
        calls = await calls_of(services, caller, conversation_id)
    given = _given(items, calls)
    if not given.messages:
        await services.conversations.find(conversation_id, caller)
        return await _shown(services, caller, page([], len(items)))
    turn, replayed = await services.conversations.append(conversation_id, caller, given, cut, idempotency_key=key)
    added = [found.item for found in items_of(turn)]
    shown = await _shown(services, caller, page(added, len(added)))
    shown.headers.update(REPLAYED if replayed else {})
    return shown


@router.get("/{conversation_id}/items", response_model=None, dependencies=[known_query])
async def list_items(
    services: CurrentServices,
    caller: CurrentCaller,
    conversation_id: str,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(description="id of the last item of the page before")] = None,
    order: Annotated[Literal["asc", "desc"], Query(description="desc: the last one first")] = "desc",
    include: Include = None,
) -> Response:
    """The items of its finished turns."""
    items = [found.item for found in await all_items(services, caller, conversation_id)]
    if order == "desc":
        items.reverse()
    unknown = NotFound("`after` must be the id of an item of this conversation.", param="after")
    return await _shown(services, caller, page(following(items, after, unknown), limit))


@router.get("/{conversation_id}/items/{item_id}", response_model=None, dependencies=[known_query])
async def retrieve_item(
    services: CurrentServices, caller: CurrentCaller, conversation_id: str, item_id: str, include: Include = None
) -> Response:
    """One of them."""
    return await _shown(services, caller, (await _found(services, caller, conversation_id, item_id)).item)


@router.delete("/{conversation_id}/items/{item_id}")
async def delete_item(
    services: CurrentServices, caller: CurrentCaller, conversation_id: str, item_id: str
) -> dict[str, Any]:
    """Takes an item out of it, and answers the conversation."""
    turn, place = await _found(services, caller, conversation_id, item_id)
    take_out = partial(without, place=place.message, call=place.call)
    await services.conversations.change(conversation_id, caller, turn.number, take_out)
    return await services.conversations.find(conversation_id, caller)
