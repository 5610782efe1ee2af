"""Logs and metrics of both ends.

Hidden here: structlog renders our records and the standard library's (uvicorn, arq, redis) alike, as JSON lines, or
for people when stderr is a terminal; the names of all metrics. Ids, names and counts are logged; prompts, answers,
keys and URLs with passwords never are.
"""

from __future__ import annotations

import logging
import os
import sys

import structlog
from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

SUBMITTED = Counter("streamspool_generations_submitted_total", "Generations accepted by this process")
SETTLED = Counter("streamspool_generations_settled_total", "Generations whose turn and usage this process has booked")
SEALED = Counter("streamspool_generations_sealed_total", "Generations this process gave their outcome", ["status"])
ATTEMPTS = Counter("streamspool_attempts_total", "Attempts started by this worker", ["reason"])
RUNNING = Gauge("streamspool_generations_running", "Generations running in this worker")
QUEUE_SECONDS = Histogram("streamspool_queue_seconds", "From accepted to claimed by a worker", buckets=_SECONDS)
FIRST_CHUNK_SECONDS = Histogram(
    "streamspool_time_to_first_chunk_seconds", "From the request to the provider's first chunk", buckets=_SECONDS
)
GENERATION_SECONDS = Histogram("streamspool_generation_seconds", "From claim to seal", buckets=_SECONDS)
ENTRIES_MENDED = Counter(
    "streamspool_entries_mended_total", "Entries of logs that the server had forgotten and this worker wrote again"
)
CONFIRM_SECONDS = Histogram(
    "streamspool_confirm_seconds", "How long the server takes to confirm what it acknowledged", buckets=_SECONDS
)
RETAINED_BYTES = Gauge(
    "streamspool_retained_bytes", "Memory for what this worker wrote and the server may still forget; as of this second"
)
CHUNKS = Counter("streamspool_chunks_total", "Chunks written to logs")
UPSTREAM_ERRORS = Counter("streamspool_upstream_errors_total", "Attempts ended by the provider", ["code"])
UPSTREAM_RETRIES = Counter("streamspool_upstream_retries_total", "Requests made again before the first chunk", ["code"])
VIEWERS = Gauge("streamspool_viewers", "Viewers attached to this process")
SOCKETS = Gauge("streamspool_sockets", "WebSockets of clients that are open at this process")
FOLLOWED = Gauge("streamspool_logs_followed", "Logs this process is following")
LOG_BYTES = Gauge(
    "streamspool_log_bytes", "Memory that followed logs take here, and those that were just replayed; as of this second"
)
RESUMES = Counter("streamspool_resumes_total", "Views that started from a cursor")
VIEWERS_DROPPED = Counter("streamspool_viewers_dropped_total", "Viewers that took no bytes for too long")
REQUESTS = Counter("streamspool_http_requests_total", "Responses sent", ["route", "status"])
REDIS_ERRORS = Counter("streamspool_redis_errors_total", "Times a part of this process lost Redis", ["part"])
BATCHES = Gauge("streamspool_batches_running", "Batches this worker hands out the lines of")
BATCH_LINES = Counter(
    "streamspool_batch_lines_total",
    "Lines of batches: completed, failed, skipped by the batch's end, or to be asked again",
    ["result"],
)
WEBHOOKS = Counter(
    "streamspool_webhook_deliveries_total", "Attempts to deliver a webhook, by how they ended", ["outcome"]
)
REAPED = Counter("streamspool_reaped_total", "Generations the reaper took care of", ["action"])


def configure_logging(level: str) -> None:
    """Sets up the whole process; called once, by its entry point."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer()
    if sys.stderr.isatty():
        shared.remove(structlog.processors.format_exc_info)
        renderer = structlog.dev.ConsoleRenderer(
            colors="NO_COLOR" not in os.environ,
            exception_formatter=structlog.dev.plain_traceback,  # the default prints variables: prompts and keys
        )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # One line per job and poll from arq, one per request from httpx: ours say the same with the ids people search for.
    for noisy in ("arq", "httpx", "httpcore", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


def begin_request(request_id: str | None) -> None:
    """From here on every log line of this task, and of those that it starts, has this `request_id`."""
    structlog.contextvars.bind_contextvars(request_id=request_id)


def current_request() -> str | None:
    """The id of the request that this task works for, if it is known."""
    found: str | None = structlog.contextvars.get_contextvars().get("request_id")
    return found


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(name)
    return logger
