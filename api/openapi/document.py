"""The description as generators can use it: names for operations, what each answers, errors, keys, no reference into nothing.

Hidden here: what the framework says of routes that answer with bytes of their own, and all that has to be said instead. A test
asks that each route is in `OPERATIONS`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fastapi import FastAPI

from api.openapi.forms import TEXT, Schema, ref
from api.openapi.schemas import COMPONENTS
from api.openapi.sharing import SHARING

_JSON, _EVENTS, _LINES, _BYTES = (
    "application/json",
    "text/event-stream",
    "application/jsonl",
    "application/octet-stream",
)


class Operation(NamedTuple):
    """A route's name, as in OpenAI's description where that has the route, and what it answers."""

    id: str
    json: str = ""
    """A component."""
    events: str = ""
    """A component: the data of each event, where the answer may be a stream."""
    other: str = ""
    """A media type of bytes."""
    also: dict[int, str] | None = None
    """Further statuses of success, with what they answer: a component, or nothing."""
    body: str = ""
    """The name that the component of its request gets."""


OPERATIONS: dict[str, Operation] = {
    "POST /v1/chat/completions": Operation(
        "createChatCompletion",
        "CreateChatCompletionResponse",
        "CreateChatCompletionStreamResponse",
        also={202: "Stream"},
        body="CreateChatCompletionRequest",
    ),
    "GET /v1/chat/completions": Operation("listChatCompletions", "ChatCompletionList"),
    "GET /v1/chat/completions/{generation_id}": Operation(
        "getChatCompletion", "CreateChatCompletionResponse", "CreateChatCompletionStreamResponse", also={204: ""}
    ),
    "POST /v1/chat/completions/{generation_id}": Operation(
        "updateChatCompletion", "CreateChatCompletionResponse", body="UpdateChatCompletionRequest"
    ),
    "DELETE /v1/chat/completions/{generation_id}": Operation("deleteChatCompletion", "ChatCompletionDeleted"),
    "GET /v1/chat/completions/{generation_id}/messages": Operation(
        "getChatCompletionMessages", "ChatCompletionMessageList"
    ),
    "POST /v1/completions": Operation(
        "createCompletion",
        "CreateCompletionResponse",
        "CreateCompletionResponse",
        also={202: "Stream"},
        body="CreateCompletionRequest",
    ),
    "GET /v1/completions/{completion_id}": Operation(
        "getCompletion", "CreateCompletionResponse", "CreateCompletionResponse", also={204: ""}
    ),
    "POST /v1/responses": Operation("createResponse", "Response", "ResponseStreamEvent", body="CreateResponse"),
    "GET /v1/responses": Operation("listResponses", "ResponseList"),
    "POST /v1/responses/input_tokens": Operation("countInputTokens", "TokenCounts", body="CreateResponse"),
    "POST /v1/responses/compact": Operation("compactResponse", "Anything", body="CompactRequest"),
    "GET /v1/responses/{response_id}": Operation("getResponse", "Response", "ResponseStreamEvent", also={204: ""}),
    "DELETE /v1/responses/{response_id}": Operation("deleteResponse", "ResponseDeleted"),
    "GET /v1/responses/{response_id}/input_items": Operation("listInputItems", "ItemList"),
    "POST /v1/responses/{response_id}/cancel": Operation("cancelResponse", "Response"),
    "POST /v1/conversations": Operation("createConversation", "ConversationResource", body="CreateConversationBody"),
    "GET /v1/conversations/{conversation_id}": Operation("getConversation", "ConversationResource"),
    "POST /v1/conversations/{conversation_id}": Operation(
        "updateConversation", "ConversationResource", body="UpdateConversationBody"
    ),
    "DELETE /v1/conversations/{conversation_id}": Operation("deleteConversation", "DeletedConversationResource"),
    "POST /v1/conversations/{conversation_id}/items": Operation(
        "createConversationItems", "ItemList", body="CreateConversationItemsBody"
    ),
    "GET /v1/conversations/{conversation_id}/items": Operation("listConversationItems", "ItemList"),
    "GET /v1/conversations/{conversation_id}/items/{item_id}": Operation("getConversationItem", "Item"),
    "DELETE /v1/conversations/{conversation_id}/items/{item_id}": Operation(
        "deleteConversationItem", "ConversationResource"
    ),
    "POST /v1/embeddings": Operation("createEmbedding", "CreateEmbeddingResponse", body="CreateEmbeddingRequest"),
    "POST /v1/moderations": Operation("createModeration", "CreateModerationResponse", body="CreateModerationRequest"),
    "GET /v1/streams": Operation("listStreams", "StreamList"),
    "GET /v1/streams/facets": Operation("countStreams", "StreamFacets"),
    "GET /v1/streams/counts": Operation("countEndedStreams", "StreamCounts"),
    "GET /v1/streams/{generation_id}": Operation("watchStream", "Stream", "ChatCompletionStreamEvent", also={204: ""}),
    "DELETE /v1/streams/{generation_id}": Operation("deleteStream", "StreamDeleted"),
    "GET /v1/streams/{generation_id}/request": Operation("getStreamRequest", "Anything"),
    "POST /v1/streams/{generation_id}/tokens": Operation(
        "createStreamToken", "StreamToken", body="CreateStreamTokenRequest"
    ),
    "POST /v1/streams/{generation_id}/shares": Operation(
        "createStreamShare", "StreamShare", body="CreateStreamShareRequest"
    ),
    "GET /v1/streams/{generation_id}/shares": Operation("listStreamShares", "StreamShareList"),
    "DELETE /v1/streams/{generation_id}/shares/{share_id}": Operation("revokeStreamShare", "StreamShareDeleted"),
    "POST /v1/streams/{generation_id}/cancel": Operation("cancelStream", "Stream"),
    "POST /v1/streams/{generation_id}/retry": Operation("retryStream", "Stream", also={202: "Stream"}),
    "POST /v1/streams/{generation_id}/redeliver": Operation("redeliverStreamWebhook", "Stream"),
    "POST /v1/streams/cancel": Operation("cancelStreams", "StreamsCancelled", body="CancelStreamsRequest"),
    "GET /v1/sessions": Operation("listSessions", "SessionList"),
    "GET /v1/sessions/{session_id}": Operation("retrieveSession", "Session"),
    "DELETE /v1/sessions/{session_id}": Operation("deleteSession", "SessionDeleted"),
    "GET /v1/sessions/{session_id}/messages": Operation("listSessionMessages", "SessionMessageList"),
    "POST /v1/files": Operation("createFile", "OpenAIFile", body="CreateFileRequest"),
    "GET /v1/files": Operation("listFiles", "ListFilesResponse"),
    "GET /v1/files/{file_id}": Operation("retrieveFile", "OpenAIFile"),
    "DELETE /v1/files/{file_id}": Operation("deleteFile", "DeleteFileResponse"),
    "GET /v1/files/{file_id}/content": Operation("downloadFile", other=_BYTES, also={206: ""}),
    "POST /v1/batches": Operation("createBatch", "Batch", body="CreateBatchRequest"),
    "GET /v1/batches": Operation("listBatches", "ListBatchesResponse"),
    "GET /v1/batches/{batch_id}": Operation("retrieveBatch", "Batch"),
    "POST /v1/batches/{batch_id}/cancel": Operation("cancelBatch", "Batch"),
    "POST /v1/batches/{batch_id}/redeliver": Operation("redeliverBatchWebhook", "Batch"),
    "GET /v1/batches/{batch_id}/events": Operation("watchBatch", events="Batch", also={204: ""}),
    "GET /v1/batches/{batch_id}/output": Operation("downloadBatchOutput", other=_LINES),
    "GET /v1/batches/{batch_id}/errors": Operation("downloadBatchErrors", other=_LINES),
    "GET /v1/usage": Operation("getUsage", "UsageList"),
    "POST /v1/keys": Operation("createKey", "Key", body="CreateKeyRequest"),
    "GET /v1/keys": Operation("listKeys", "KeyList"),
    "GET /v1/keys/{key_id}": Operation("retrieveKey", "Key"),
    "POST /v1/keys/{key_id}": Operation("updateKey", "Key", body="UpdateKeyRequest"),
    "DELETE /v1/keys/{key_id}": Operation("revokeKey", "KeyDeleted"),
    "POST /v1/keys/{key_id}/rotate": Operation("rotateKey", "Key", body="RotateKeyRequest"),
    "GET /v1/events": Operation("followEvents", events="LiveEvent"),
    "GET /v1/workers": Operation("listWorkers", "WorkerList"),
    "POST /v1/workers/{worker_id}/drain": Operation("drainWorker", "Worker"),
    "POST /v1/workers/{worker_id}/resume": Operation("resumeWorker", "Worker"),
    "GET /v1/providers": Operation("listProviders", "ProviderList"),
    "POST /v1/providers/{name}/test": Operation("testProvider", "ProviderTest"),
    "GET /v1/queue": Operation("getQueue", "Queue"),
    "GET /v1/history": Operation("getHistory", "History"),
    "GET /v1/redis": Operation("getRedis", "Redis"),
    "GET /v1/settings": Operation("listSettings", "SettingList"),
    "GET /v1/limits": Operation("getLimits", "Limits"),
    "POST /v1/limits/{tenant}": Operation("setLimits", "TenantLimits", body="SetLimitsRequest"),
    "DELETE /v1/limits/{tenant}": Operation("resetLimits", "TenantLimits"),
    "GET /v1/audit": Operation("listAudit", "AuditList"),
    "POST /console/session": Operation("signIn", "ConsoleSession", body="SignInRequest"),
    "GET /console/session": Operation("getSignedIn", "ConsoleSession"),
    "DELETE /console/session": Operation("signOut", "ConsoleSessionDeleted"),
    "POST /s/session": Operation("openShare", "ShareSession", body="OpenShareRequest"),
    "GET /v1/models": Operation("listModels", "ListModelsResponse"),
    "GET /v1/models/{model}": Operation("retrieveModel", "Model"),
}

_KEY, _TOKEN, _COOKIE, _SHARE = "key", "streamToken", "signedIn", "share"
_SECURITY = {
    _KEY: {
        "type": "http",
        "scheme": "bearer",
        "description": "One of STREAMSPOOL_API_KEYS or STREAMSPOOL_ADMIN_KEYS, or of createKey; a server without keys "
        "wants none.",
    },
    _TOKEN: {
        "type": "apiKey",
        "in": "query",
        "name": "token",
        "description": "Of createStreamToken; opens one stream.",
    },
    _COOKIE: {
        "type": "apiKey",
        "in": "cookie",
        "name": "__Host-streamspool",
        "description": "Of signIn; good for pages of this server's own origin.",
    },
    _SHARE: {
        "type": "apiKey",
        "in": "query",
        "name": "share",
        "description": "The id of a share that openShare opened in this browser, which has a cookie for it.",
    },
}
_STREAM = "/v1/streams/{generation_id}"
_OPENED_BY = (
    (_STREAM, "get", (_KEY, _COOKIE, _TOKEN, _SHARE)),
    (f"{_STREAM}/request", "get", (_KEY, _COOKIE, _SHARE)),
    (f"{_STREAM}/cancel", "post", (_KEY, _COOKIE, _SHARE)),
    ("/console/session", "post", ()),
    ("/console/session", "delete", ()),
    ("/s/session", "post", ()),
)
"""Operations that want something else than a key, or nothing."""


def install(app: FastAPI, *, keyed: bool) -> None:
    """`app.openapi()` is the document from now on. `keyed`: this server wants keys."""
    describe = app.openapi

    def openapi() -> Schema:
        if app.openapi_schema is None:
            app.openapi_schema = document(describe(), keyed=keyed)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def document(schema: Schema, *, keyed: bool) -> Schema:
    """The framework's description, in which routes and parameters are right, with all the rest of ours."""
    components = {**COMPONENTS, **SHARING}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            told = OPERATIONS.get(f"{method.upper()} {path}") or Operation(operation["operationId"], "Anything")
            _rewrite(operation, told, components)
    for path, method, ways in _OPENED_BY:
        operation = schema["paths"][path][method]
        operation["security"] = [{way: []} for way in ways]
        names = {_SECURITY[way].get("name") for way in ways}
        if parameters := operation.get("parameters"):  # said by the security scheme
            operation["parameters"] = [one for one in parameters if one["name"] not in names]
    schema["components"] = {
        "schemas": components,
        "responses": {
            "Error": {"description": "An error, in OpenAI's shape", "content": _content(_JSON, "ErrorResponse")}
        },
        "securitySchemes": _SECURITY,
    }
    schema["security"] = [{_KEY: []}, {_COOKIE: []}] if keyed else [{}, {_KEY: []}]
    schema["servers"] = [{"url": "/"}]
    return schema


def _rewrite(operation: Schema, told: Operation, components: dict[str, Schema]) -> None:
    operation["operationId"] = told.id
    content: Schema = {}
    if told.json:
        content |= _content(_JSON, told.json)
    if told.events:
        content[_EVENTS] = {"schema": _event(told.events)}
    if told.other:
        content[told.other] = {"schema": {"type": "string", "format": "binary"} if told.other == _BYTES else TEXT}
    responses: dict[str, Any] = {"200": {"description": "Done", "content": content}}
    for status, component in (told.also or {}).items():
        responses[str(status)] = {"description": _MEANT[status]}
        if component:
            responses[str(status)]["content"] = _content(_JSON, component)
        elif status == 206:
            responses["206"]["content"] = content
    operation["responses"] = {**responses, "default": {"$ref": "#/components/responses/Error"}}
    for body in operation.get("requestBody", {}).get("content", {}).values():
        name = told.body or f"{told.id}Request"
        if name not in components:
            components[name] = _hoisted(body["schema"], name, components)
        body["schema"] = ref(name)


_MEANT = {
    202: "Accepted, with `background`",
    204: "There is nothing after this cursor",
    206: "The range that was asked for",
}


def _content(kind: str, component: str) -> Schema:
    return {kind: {"schema": ref(component)}}


def _event(component: str) -> Schema:
    """One event of a stream, by its fields (html.spec.whatwg.org, "Server-sent events").

    `contentSchema` stands without its media type: the last event's data is `[DONE]`, which is no JSON.
    """
    data = {"type": "string", "description": "JSON, and `[DONE]` at the end", "contentSchema": ref(component)}
    return {
        "type": "object",
        "properties": {"id": TEXT, "event": TEXT, "retry": {"type": "integer"}, "data": data},
        "required": ["data"],
    }


def _hoisted(schema: Schema, owner: str, components: dict[str, Schema]) -> Schema:
    """A request's schema with its `$defs` among the components; of two that differ, the later has its owner's name, too."""
    definitions = schema.pop("$defs", {})
    names = {name: name for name in definitions}
    for name, one in definitions.items():
        if components.get(name, told := _renamed(one, names)) != told:
            names[name] = f"{owner}{name}"
    for name, one in definitions.items():
        components[names[name]] = {**_renamed(one, names), "title": names[name]}
    return {**_renamed(schema, names), "title": owner}


def _renamed(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, list):
        return [_renamed(one, names) for one in value]
    if not isinstance(value, dict):
        return value
    if isinstance(target := value.get("$ref"), str) and target.startswith("#/$defs/"):
        return {**value, "$ref": f"#/components/schemas/{names[target.removeprefix('#/$defs/')]}"}
    return {key: _renamed(one, names) for key, one in value.items()}
