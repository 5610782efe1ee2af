"""What a worker counts of its attempts: how long what took, with whom, and what went wrong.

Hidden here: which labels that has. Providers and models are those of targets, which are set up, or a bounded number; codes are
from a short list, since those of providers are theirs to invent.
"""

from __future__ import annotations

from shared.errors import StreamspoolError, UpstreamError, UpstreamRefused
from shared.lib.clock import now_ms
from shared.lib.telemetry import (
    ATTEMPTS,
    CHUNK_SECONDS,
    FIRST_CHUNK_SECONDS,
    GENERATION_SECONDS,
    QUEUE_SECONDS,
    UPSTREAM_ERRORS,
    UPSTREAM_RETRIES,
    answered_by,
    get_logger,
    provider_of,
)
from shared.lib.traces import genai, tracing
from shared.log import feed as events
from shared.log.records import Header, Refusal
from shared.log.records import Served as Note
from shared.log.streamlog import StreamLog
from shared.log.writer import Writer
from worker import spans
from worker.upstream.attempts import Served, Target

logger = get_logger(__name__)


def claimed(reason: str, queued_ms: int) -> None:
    ATTEMPTS.labels(reason).inc()
    QUEUE_SECONDS.observe(queued_ms / 1000)


def first_chunk(served: Served, first_s: float) -> None:
    """To be called once it is on its way: nobody waits for this."""
    labels = answered_by(_asked(served))
    FIRST_CHUNK_SECONDS.labels(**labels).observe(first_s, tracing.exemplar())
    genai.observe(labels, first_s=first_s)


def failed(error: StreamspoolError, served: Served) -> None:
    code = _cause(error)
    UPSTREAM_ERRORS.labels(code, provider_of(_asked(served))).inc()
    if (span := tracing.current()) is not None:
        span.fail(code)


class Telling:
    """Tells whoever follows events of what is counted here, with what is sent next."""

    def __init__(self, log: StreamLog) -> None:
        self._log = log

    def retried(self, writer: Writer, header: Header, error: UpstreamError, target: Target) -> None:
        _retried(writer, error, target)
        if (feed := self._log.feed) is not None:
            refusal: Refusal = {"model": target.name, "status": error.provider_status, "code": error.code}
            writer.tell(feed, events.retried, header, writer.number, refusal, now_ms())

    def first_chunk(self, writer: Writer, header: Header, note: Note) -> None:
        if (feed := self._log.feed) is not None and writer.spoke_at_ms is not None:
            writer.tell(feed, events.first_chunk, header, writer.number, note, writer.spoke_at_ms, now_ms())


def _retried(writer: Writer, error: UpstreamError, target: Target) -> None:
    code = _cause(error)
    UPSTREAM_RETRIES.labels(code, provider_of(target.name)).inc()
    spans.retried(target, code, error.provider_status)
    logger.info(
        "upstream retried", generation_id=writer.generation_id, error_code=error.code, status=error.provider_status
    )


def ended(writer: Writer, served: Served, took_s: float, error: StreamspoolError | None) -> None:
    labels = answered_by(_asked(served))
    GENERATION_SECONDS.labels(**labels).observe(took_s, tracing.exemplar())
    genai.ended(labels, took_s, "" if error is None else _cause(error))
    if (chunks := writer.position.seq) > 1:
        first_s = writer.timings.get("first_chunk_ms", 0) / 1000
        chunk_s = max(0.0, took_s - first_s) / (chunks - 1)
        CHUNK_SECONDS.labels(**labels).observe(chunk_s)
        genai.observe(labels, chunk_s=chunk_s)


def _asked(served: Served) -> str | None:
    """Who answered, or else was asked last."""
    if served.target is not None:
        return served.target.name
    return served.refused[-1]["model"] if served.refused else None


def _cause(error: StreamspoolError) -> str:
    return f"status_{error.provider_status}" if isinstance(error, UpstreamRefused) else error.code
