"""Spans of the worker: an attempt at a generation, what is asked of a provider for it, a batch, and a webhook.

Hidden here: how an attempt that was lost with its worker comes into the trace. A worker that is killed sends nothing of what it
had begun; whoever takes the generation over finds in the log that there was an attempt, whose and since when, and tells of it.
See shared/lib/traces/tracing.py; the names of attributes are in shared/lib/traces/genai.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from typing import TYPE_CHECKING, Any

from shared.chat.whole import FIELD
from shared.errors import LogError
from shared.features.batch_head import BatchHead
from shared.features.webhooks import Delivery, Result
from shared.lib import json
from shared.lib.traces import genai, tracing
from shared.log.records import Attempt, Header
from shared.store.redis import RedisError

if TYPE_CHECKING:
    from shared.log.streamlog import StreamLog
    from shared.log.writer import Writer
    from worker.normalizer import Normalizer
    from worker.upstream.attempts import Served, Target

_OFF: nullcontext[None] = nullcontext()


def generating(log: StreamLog, writer: Writer, header: Header) -> AbstractAsyncContextManager[object]:
    """The span of one attempt."""
    if not tracing.is_on():
        return _OFF
    return tracing.unsampled(header.get("traceparent")) or _generating(log, writer, header)


@asynccontextmanager
async def _generating(log: StreamLog, writer: Writer, header: Header) -> AsyncIterator[None]:
    attempt: Attempt = json.loads(writer.claim.attempt)
    if attempt["reason"] == "worker_lost":
        with suppress(RedisError, OSError, LogError):
            _, before = await log.last_of(writer.generation_id, writer.epoch - 1)
            if before is not None:
                with _attempt(header, json.loads(before), lost=True) as span:
                    if span is not None:
                        span.fail("worker_lost")
    with _attempt(header, attempt):
        tracing.annotate(lambda: {"streamspool.queued_ms": writer.timings.get("queued_ms")})
        yield


def _attempt(header: Header, attempt: Attempt, *, lost: bool = False) -> AbstractContextManager[tracing.Span | None]:
    above, began_ms = header.get("traceparent"), attempt["at_ms"] if lost else None

    def about() -> dict[str, Any]:
        return {
            **_of(header),
            "streamspool.attempt.number": attempt.get("number"),
            "streamspool.attempt.reason": attempt["reason"],
            "streamspool.worker.id": attempt["worker"],
        }

    return tracing.span("generate", "consumer", about, parent=above, links=[above], began_ms=began_ms)


def asking(body: Mapping[str, Any], normalizer: Normalizer, served: Served) -> AbstractContextManager[object]:
    """The span of what is asked of providers for one attempt: all tries, and all targets."""
    return _asking(body, normalizer, served) if tracing.is_kept() else _OFF


@contextmanager
def _asking(body: Mapping[str, Any], normalizer: Normalizer, served: Served) -> Iterator[None]:
    whole = body.get(FIELD)
    operation = whole["path"].rpartition("/")[2] if whole else genai.CHAT
    model = str(body["model"]).partition("?")[0]

    def about() -> dict[str, Any]:
        return {genai.OPERATION: operation, genai.REQUEST_MODEL: model}

    with tracing.span(f"{operation} {model}", "client", about):
        try:
            yield
        finally:
            tracing.annotate(lambda: _answered(normalizer, served))


def _answered(normalizer: Normalizer, served: Served) -> dict[str, Any]:
    found: dict[str, Any] = genai.usage(normalizer.usage)
    found["streamspool.retries"] = served.retries
    if reasons := [one for one in normalizer.finish_reasons if one]:
        found[genai.FINISH_REASONS] = reasons
    if served.target is not None:
        found[genai.PROVIDER] = genai.provider_name(served.target.provider.name)
        found["streamspool.target"] = served.target.name.partition("?")[0]
    return found


def outgoing() -> dict[str, str]:
    """The header by which a provider may go on with the trace."""
    traceparent = tracing.traceparent()
    return {} if traceparent is None else {"traceparent": traceparent}


def retried(target: Target, code: str, status: int) -> None:
    tracing.event("retry", lambda: _refusal(target, code, status))


def refused(target: Target, code: str | None, status: int) -> None:
    """It was given up on, and the next one is asked."""
    tracing.event("refused", lambda: _refusal(target, code, status))


def batched(head: BatchHead) -> None:
    """A batch has ended: its span, which is as long as the batch took, by however many workers."""
    created = head.get("traceparent")

    def about() -> dict[str, Any]:
        return {
            "streamspool.batch.id": head["id"],
            "streamspool.tenant": head["owner"],
            "streamspool.batch.status": head["status"],
            "streamspool.batch.lines": head["total"],
            "streamspool.batch.lines_failed": head["failed"],
        }

    with tracing.span(
        "batch", "consumer", about, parent=created, links=[created], began_ms=head["at"]["created"]
    ) as span:
        if span is not None and head["status"] == "failed":
            span.fail(head["errors"][0]["code"] if head["errors"] else "failed")


def delivering(delivery: Delivery) -> AbstractContextManager[object]:
    """The span of one delivery of a webhook, whose address it does not tell."""

    def about() -> dict[str, Any]:
        return {
            "streamspool.webhook.subject": delivery.subject,
            "streamspool.tenant": delivery.tenant,
            "streamspool.attempt.number": delivery.attempt,
        }

    return tracing.span("webhook", "client", about, parent=delivery.traceparent, links=[delivery.traceparent])


def delivered(result: Result) -> None:
    if (span := tracing.current()) is not None:
        span.annotate({"streamspool.webhook.outcome": result.outcome, "http.response.status_code": result.status})
        if result.outcome != "delivered":
            span.fail(result.error or result.outcome)


def _of(header: Header) -> dict[str, Any]:
    batch = header.get("batch")
    return {
        "streamspool.generation.id": header["id"],
        "streamspool.tenant": header["owner"],
        "streamspool.batch.id": batch["id"] if batch else None,
    }


def _refusal(target: Target, code: str | None, status: int) -> dict[str, Any]:
    return {
        "streamspool.target": target.name.partition("?")[0],
        "error.type": code,
        "http.response.status_code": status,
    }
