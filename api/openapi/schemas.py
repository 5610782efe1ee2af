"""What the API answers, as JSON Schemas by name: the components of `/openapi.json`.

Hidden here: nothing; it is data. Objects that OpenAI has are named as in OpenAI's own description, so that generators give its
names to classes. An object may have more than is listed: what providers add is passed on.
"""

from __future__ import annotations

from api.openapi.forms import ANY_OBJECT, TEXT, TRUTH, WHOLE, Schema, ref
from api.openapi.forms import list_of as _list_of
from api.openapi.forms import object_of as _object
from api.openapi.forms import one_of as _one_of
from api.openapi.forms import or_null as _or_null
from api.openapi.forms import page as _page
from api.openapi.operating import OPERATING
from shared.features.spend.figures import FIGURES
from shared.log.entry import Status


def _deleted(kind: str) -> Schema:
    return _object("What was deleted.", id=TEXT, object=_one_of(kind), deleted=TRUTH)


_MAYBE_TEXT, _MAYBE_WHOLE, _MAYBE_OBJECT = _or_null(TEXT), _or_null(WHOLE), _or_null(ANY_OBJECT)
_STATUS = _one_of(*Status)
_METADATA: Schema = {"type": "object", "additionalProperties": TEXT}

_ERRORS = {
    "Error": _object("OpenAI's error object.", message=TEXT, type=TEXT, param=_MAYBE_TEXT, code=_MAYBE_TEXT),
    "Anything": ANY_OBJECT,
    "ErrorResponse": _object("What every refusal answers, and in a stream a frame.", error=ref("Error")),
}

_CHAT = {
    "CompletionUsage": _object(
        "Tokens, as the provider counted them, or as `usage_source` says.",
        prompt_tokens=WHOLE,
        completion_tokens=WHOLE,
        total_tokens=WHOLE,
        perhaps={"prompt_tokens_details": _MAYBE_OBJECT, "completion_tokens_details": _MAYBE_OBJECT},
    ),
    "ChatCompletionResponseMessage": _object(
        "What was said.",
        perhaps={
            "role": TEXT,
            "content": {"anyOf": [TEXT, _list_of(ANY_OBJECT), {"type": "null"}]},
            "refusal": _MAYBE_TEXT,
            "reasoning": _MAYBE_TEXT,
            "reasoning_content": _MAYBE_TEXT,
            "tool_calls": _or_null(_list_of(ANY_OBJECT)),
        },
    ),
    "ChatCompletionChoice": _object(
        "One of `n`.",
        index=WHOLE,
        message=ref("ChatCompletionResponseMessage"),
        finish_reason=_MAYBE_TEXT,
        perhaps={"logprobs": _MAYBE_OBJECT},
    ),
    "CreateChatCompletionResponse": _object(
        "An answer, as far as it is.",
        id=TEXT,
        object=_one_of("chat.completion"),
        created=WHOLE,
        model=TEXT,
        choices=_list_of(ref("ChatCompletionChoice")),
        status=_STATUS,
        perhaps={
            "usage": _or_null(ref("CompletionUsage")),
            "usage_source": TEXT,
            "error": ref("Error"),
            "metadata": _METADATA,
            "service_tier": _MAYBE_TEXT,
            "system_fingerprint": _MAYBE_TEXT,
        },
    ),
    "ChatCompletionChunkChoice": _object(
        "What one chunk adds to one of `n`.",
        index=WHOLE,
        perhaps={"delta": ANY_OBJECT, "finish_reason": _MAYBE_TEXT, "logprobs": _MAYBE_OBJECT},
    ),
    "CreateChatCompletionStreamResponse": _object(
        "An event's data: a chunk. The last event has the text `[DONE]`; an event that ends an answer in vain has an `error`.",
        id=TEXT,
        object=_one_of("chat.completion.chunk"),
        created=WHOLE,
        model=TEXT,
        choices=_list_of(ref("ChatCompletionChunkChoice")),
        perhaps={"usage": _or_null(ref("CompletionUsage"))},
    ),
    "ChatCompletionStreamEvent": {
        "oneOf": [ref("CreateChatCompletionStreamResponse"), ref("ErrorResponse"), ref("StreamAttempt")]
    },
    "StreamAttempt": _object("Data of `event: attempt`, on /v1/streams: what was shown is void.", attempt=WHOLE),
    "CreateCompletionResponse": _object(
        "An answer to a prompt, as far as it is; in a stream, what one chunk adds to it.",
        id=TEXT,
        object=_one_of("text_completion"),
        created=WHOLE,
        model=TEXT,
        choices=_list_of(ANY_OBJECT),
        perhaps={"usage": _MAYBE_OBJECT, "status": _STATUS, "error": ref("Error")},
    ),
    "ChatCompletionList": _page(ref("CreateChatCompletionResponse")),
    "ChatCompletionDeleted": _deleted("chat.completion.deleted"),
    "ChatCompletionStoreMessage": _object("A message of a request.", id=TEXT, role=TEXT),
    "ChatCompletionMessageList": _page(ref("ChatCompletionStoreMessage")),
}

_RESPONSES = {
    "Response": _object(
        "A response, as far as it is.",
        id=TEXT,
        object=_one_of("response"),
        created_at=WHOLE,
        status=_one_of(*Status),
        model=TEXT,
        output=_list_of(ANY_OBJECT),
        error=_MAYBE_OBJECT,
        incomplete_details=_MAYBE_OBJECT,
        usage=_MAYBE_OBJECT,
        perhaps={"completed_at": _MAYBE_WHOLE, "previous_response_id": _MAYBE_TEXT, "metadata": _MAYBE_OBJECT},
    ),
    "ResponseStreamEvent": _object(
        "An event's data; what else it has is told by its type.", type=TEXT, sequence_number=WHOLE
    ),
    "ResponseDeleted": _deleted("response"),
    "Item": _object("An item of an input, or of an output.", type=TEXT, perhaps={"id": _MAYBE_TEXT}),
    "ResponseList": _page(ref("Response")),
    "ItemList": _page(ref("Item")),
    "ConversationResource": _object(
        "A conversation.", id=TEXT, object=_one_of("conversation"), created_at=WHOLE, metadata=ANY_OBJECT
    ),
    "DeletedConversationResource": _deleted("conversation.deleted"),
    "TokenCounts": _object("How long an input is.", object=_one_of("response.input_tokens"), input_tokens=WHOLE),
}

_STREAMS = {
    "StreamTimings": _object(
        "In milliseconds; null for what has not happened.",
        queued_ms=_MAYBE_WHOLE,
        first_chunk_ms=_MAYBE_WHOLE,
        generation_ms=_MAYBE_WHOLE,
        total_ms=_MAYBE_WHOLE,
    ),
    "Stream": _object(
        "The state of a generation.",
        id=TEXT,
        object=_one_of("stream"),
        status=_STATUS,
        model=TEXT,
        created_at=WHOLE,
        started_at=_MAYBE_WHOLE,
        ended_at=_MAYBE_WHOLE,
        attempts=WHOLE,
        interrupted=_list_of(_MAYBE_TEXT),
        served_by=_MAYBE_TEXT,
        refused=_list_of(ANY_OBJECT),
        retries=WHOLE,
        timings=ref("StreamTimings"),
        chunks=WHOLE,
        position=_MAYBE_TEXT,
        usage=_or_null(ref("CompletionUsage")),
        usage_source=_MAYBE_TEXT,
        cost_usd=_or_null({"type": "number"}),
        cost_source=_MAYBE_TEXT,
        characters=_MAYBE_OBJECT,
        finish_reasons=_list_of(_MAYBE_TEXT),
        error=_or_null(ref("Error")),
        sealed_by=_MAYBE_TEXT,
        metadata=_METADATA,
        stored=TRUTH,
        session_id=_MAYBE_TEXT,
        batch_id=_MAYBE_TEXT,
        retried_from=_MAYBE_TEXT,
        summarises=_MAYBE_TEXT,
        trace_id=_MAYBE_TEXT,
        background=TRUTH,
        webhook=_MAYBE_OBJECT,
        viewers=WHOLE,
        links={"type": "object", "additionalProperties": TEXT},
    ),
    "StreamList": _page(ref("Stream"), perhaps={"partial": TRUTH}),
    "StreamDeleted": _deleted("stream.deleted"),
    "StreamsCancelled": _object(
        "The state of each, or why it could not be ended.",
        object=_one_of("list"),
        data=_list_of({"anyOf": [ref("Stream"), ref("StreamError")]}),
    ),
    "StreamError": _object("An id that is no stream's.", id=TEXT, object=_one_of("stream.error"), error=ref("Error")),
    "StreamToken": _object(
        "Opens one stream for a while.",
        object=_one_of("stream.token"),
        stream_id=TEXT,
        token=TEXT,
        expires_at=WHOLE,
        url=TEXT,
    ),
    "CreateStreamTokenRequest": {
        "type": "object",
        "properties": {"expires_in_s": {"type": "integer", "minimum": 1, "maximum": 3600, "default": 600}},
        "additionalProperties": False,
    },
}

_NUMBERS: Schema = {"type": "object", "additionalProperties": WHOLE}

_KEYS = {
    "Key": _object(
        "A key, without its secret.",
        id=TEXT,
        object=_one_of("key"),
        name=TEXT,
        tenant=TEXT,
        role=_one_of("admin", "tenant", "viewer"),
        status=_one_of("active", "expired", "revoked"),
        source=_one_of("api", "environment"),
        hint=_MAYBE_TEXT,
        created_at=_MAYBE_WHOLE,
        expires_at=_MAYBE_WHOLE,
        revoked_at=_MAYBE_WHOLE,
        last_used_at=_MAYBE_WHOLE,
        overlap_until=_MAYBE_WHOLE,
        models=_or_null(_list_of(TEXT)),
        limits={"type": "object", "additionalProperties": WHOLE},
        budgets={"type": "object", "additionalProperties": {"type": "number"}},
        perhaps={"key": {**TEXT, "description": "The secret: told when it is made, and never again."}},
    ),
    "KeyList": _page(ref("Key")),
    "KeyDeleted": _deleted("key.deleted"),
    "Limits": _object(
        "What a tenant and a key may use, and use now.",
        object=_one_of("limits"),
        tenant=TEXT,
        limits=_NUMBERS,
        used=_NUMBERS,
        budgets=_list_of(ref("Budget")),
        key=_object("The key's own.", id=_MAYBE_TEXT, limits=_NUMBERS, used=_NUMBERS, budgets=_list_of(ref("Budget"))),
    ),
    "Budget": _object(
        "What may be spent in a period, and was spent of it. Not `hard`: it is only told.",
        period=_one_of("day", "month"),
        now=TEXT,
        hard=TRUTH,
        limit_usd={"type": "number"},
        spent_usd={"type": "number"},
    ),
    "TenantLimits": _object(
        "What was set for a tenant, and what holds.",
        object=_one_of("limits"),
        tenant=TEXT,
        set=_NUMBERS,
        limits=_NUMBERS,
    ),
    "AuditEntry": _object(
        "A change of a key or of limits.",
        id=TEXT,
        object=_one_of("audit.entry"),
        at=WHOLE,
        action=TEXT,
        subject=TEXT,
        tenant=TEXT,
        by=_object("Who made it.", key_id=_MAYBE_TEXT, tenant=TEXT),
        request_id=_MAYBE_TEXT,
        details=ANY_OBJECT,
    ),
    "AuditList": _page(ref("AuditEntry")),
}

_USED: dict[str, Schema] = {
    **dict.fromkeys(FIGURES, WHOLE),
    "cost_usd": _or_null({"type": "number"}),
    "unknown_costs": WHOLE,
    "first_token_ms": _or_null(ref("UsageTimes")),
    "duration_ms": _or_null(ref("UsageTimes")),
    "priced_by": {"type": "object", "additionalProperties": WHOLE},
}

_RESOURCES = {
    "Embedding": _object(
        "The vector of one input, as numbers or in base64.",
        object=_one_of("embedding"),
        index=WHOLE,
        embedding={"anyOf": [_list_of({"type": "number"}), TEXT]},
    ),
    "CreateEmbeddingResponse": _object(
        "Vectors.",
        object=_one_of("list"),
        data=_list_of(ref("Embedding")),
        perhaps={"model": TEXT, "usage": ANY_OBJECT},
    ),
    "CreateModerationResponse": _object(
        "What was found.", results=_list_of(ANY_OBJECT), perhaps={"id": TEXT, "model": TEXT}
    ),
    "Session": _object(
        "A conversation.",
        id=TEXT,
        object=_one_of("session"),
        created_at=WHOLE,
        updated_at=WHOLE,
        expires_at=WHOLE,
        turns=WHOLE,
        tokens=WHOLE,
        bytes=WHOLE,
        open=_list_of(TEXT),
    ),
    "SessionList": _page(ref("Session")),
    "SessionDeleted": _deleted("session.deleted"),
    "SessionMessage": _object(
        "A message of a finished turn.",
        id=TEXT,
        object=_one_of("session.message"),
        created_at=WHOLE,
        generation_id=TEXT,
    ),
    "SessionMessageList": _page(ref("SessionMessage")),
    "OpenAIFile": _object(
        "A file.",
        id=TEXT,
        object=_one_of("file"),
        bytes=WHOLE,
        created_at=WHOLE,
        expires_at=_MAYBE_WHOLE,
        filename=TEXT,
        purpose=TEXT,
        status=TEXT,
        perhaps={"status_details": _MAYBE_TEXT},
    ),
    "ListFilesResponse": _page(ref("OpenAIFile")),
    "DeleteFileResponse": _deleted("file"),
    "BatchRequestCounts": _object("Lines.", total=WHOLE, completed=WHOLE, failed=WHOLE),
    "Batch": _object(
        "A batch.",
        id=TEXT,
        object=_one_of("batch"),
        endpoint=TEXT,
        input_file_id=TEXT,
        completion_window=TEXT,
        status=_one_of(
            *"validating failed in_progress finalizing completed expired cancelling cancelled".split(),
        ),
        created_at=WHOLE,
        request_counts=ref("BatchRequestCounts"),
        perhaps={
            "model": _MAYBE_TEXT,
            "errors": _MAYBE_OBJECT,
            "output_file_id": _MAYBE_TEXT,
            "error_file_id": _MAYBE_TEXT,
            **{
                f"{name}_at": _MAYBE_WHOLE
                for name in "in_progress finalizing completed failed expires expired cancelling cancelled".split()
            },
            "usage": _MAYBE_OBJECT,
            "metadata": _or_null(_METADATA),
            "webhook": _MAYBE_OBJECT,
        },
    ),
    "ListBatchesResponse": _page(ref("Batch")),
    "Model": _object("A model that can be named here.", id=TEXT, object=_one_of("model"), created=WHOLE, owned_by=TEXT),
    "ListModelsResponse": _object("All of them.", object=_one_of("list"), data=_list_of(ref("Model"))),
    "UsageTimes": _object("Percentiles in milliseconds, within 9 %.", p50=WHOLE, p90=WHOLE, p99=WHOLE),
    "UsageSum": _object("What was used.", **_USED),
    "UsageRow": _object(
        "What a group used in a day, or in an hour. A name of metadata is a field of its own, `metadata.NAME`.",
        object=_one_of("usage"),
        **_USED,
        perhaps={"date": TEXT, "hour": TEXT, **dict.fromkeys(("tenant", "key", "model", "provider"), _MAYBE_TEXT)},
    ),
    "UsageList": _object(
        "A row for each day or hour and each group, and their sum.",
        object=_one_of("list"),
        start=TEXT,
        end=TEXT,
        data=_list_of(ref("UsageRow")),
        total=ref("UsageSum"),
    ),
}

COMPONENTS: dict[str, Schema] = {
    **_ERRORS,
    **_CHAT,
    **_RESPONSES,
    **_STREAMS,
    **_KEYS,
    **OPERATING,
    **_RESOURCES,
}
