"""The header of a log: what a request asked for, and where it did not say, what the settings do.

Hidden here: which field of a request has which default. For example, `on_disconnect` is `continue` with `background`, whatever
the settings say.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from shared.chat.request import ChatRequest
from shared.config.settings import Settings
from shared.errors import BadRequest
from shared.features.sessions import check_id
from shared.generations.caller import Caller
from shared.lib.clock import now_ms
from shared.lib.telemetry import current_request
from shared.lib.traces import genai, tracing
from shared.log.entry import VERSION
from shared.log.records import Header, SessionTerms, WebhookTarget

_NOT_TRACED: AbstractContextManager[object] = nullcontext()


def make_header(
    settings: Settings,
    generation_id: str,
    request: ChatRequest,
    caller: Caller,
    digest: str | None,
    client_history: bool,
    webhook: WebhookTarget | None,
) -> Header:
    """`digest` is the idempotency key's. Raises BadRequest for what no turn of a session can be."""
    on_disconnect = request.on_disconnect or settings.on_disconnect
    return {
        "v": VERSION,
        "id": generation_id,
        "owner": caller.tenant,
        "key_id": caller.key_id,
        "budgets": dict(caller.budgets) or None,
        "reserved": None,
        "near_budget": None,
        "model": request.model,
        "created_at_ms": now_ms(),
        "n": request.n or 1,
        "include_usage": request.include_usage,
        "on_interruption": request.on_interruption or settings.on_interruption,
        "on_disconnect": "continue" if request.background else on_disconnect,
        "background": bool(request.background),
        "webhook": webhook,
        "max_tokens_per_s": request.max_tokens_per_s or settings.pace(caller.tenant),
        "idempotency": digest,
        "metadata": request.metadata,
        "store": bool(request.store),
        "retention_s": retention_s(settings, request) if request.store else None,
        "session_id": request.session_id,
        "session": None
        if request.session_id is None
        else _session(settings, request, request.session_id, client_history),
        "limited": None,
        "batch": None,
        "surface": "chat",
        "previous": None,
        "retried_from": None,
        "summarises": None,
        "server": None,
        "request_id": current_request(),
        "traceparent": None,
    }


def enqueued(header: Header, batch: str | None = None) -> AbstractContextManager[object]:
    """The span in which a generation is accepted. Every attempt at it is a child of it, in whichever process: the header says
    so from here on. That of a line has a link to where its `batch` was asked for."""
    if not tracing.is_on():
        return _NOT_TRACED
    if tracing.is_kept():
        return _enqueued(header, batch)
    header["traceparent"] = tracing.traceparent()
    return _NOT_TRACED


@contextmanager
def _enqueued(header: Header, asked_for: str | None) -> Iterator[None]:
    batch = header["batch"]
    about = {
        "streamspool.generation.id": header["id"],
        "streamspool.tenant": header["owner"],
        "streamspool.batch.id": batch["id"] if batch else None,
        genai.REQUEST_MODEL: header["model"],
    }
    with tracing.span("enqueue", "producer", lambda: about, links=[asked_for]) as span:
        if span is not None:
            header["traceparent"] = span.traceparent
        yield


def _session(settings: Settings, request: ChatRequest, session_id: str, client_history: bool) -> SessionTerms:
    """What a generation's log says about its session; `turn` is added when its place in it is known."""
    if (request.n or 1) > 1:
        raise BadRequest("A turn of a session has one answer: n must be 1.", param="n")
    return {
        "id": check_id(session_id),
        "policy": request.session_policy or settings.session_policy,
        "trim": request.session_trim or settings.session_trim,
        "max_tokens": min(request.session_max_tokens or settings.session_max_tokens, settings.session_max_tokens),
        "keep_partial": bool(request.session_keep_partial),
        "store_reasoning": settings.store_reasoning if request.store_reasoning is None else request.store_reasoning,
        "client_history": client_history,
    }


def retention_s(settings: Settings, request: ChatRequest) -> float:
    """How long the log is kept once it is sealed."""
    return max(settings.retention_s, settings.stored_retention_s) if request.store else settings.retention_s
