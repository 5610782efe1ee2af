"""Logs and metrics of both ends.

Hidden here: structlog renders our records and the standard library's (uvicorn, arq, redis) alike, as JSON lines, or
for people when stderr is a terminal; the names of all metrics. Ids, names and counts are logged; prompts, answers,
keys and URLs with passwords never are.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Collection
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, cast

import structlog
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder

from shared.lib.metrics import Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
"""An answer may take an hour (STREAMSPOOL_GENERATION_S)."""
_MODELS = 200
"""So many models get a label of their own, the first that answer; the rest is `other`. Clients may make names up."""
_TENANTS = 500
"""And so many tenants, where they are a label."""

SUBMITTED = Counter("streamspool_generations_submitted_total", "Generations accepted by this process")
SETTLED = Counter("streamspool_generations_settled_total", "Generations whose turn and usage this process has booked")
ARCHIVED = Counter("streamspool_logs_archived_total", "Logs this process has moved from Redis into the file storage")
OBJECT_BYTES = Gauge("streamspool_object_bytes", "Memory that archived logs take here which were read just now")
SEALED = Counter(
    "streamspool_generations_sealed_total",
    "Generations this process gave their outcome",
    ["status", "provider", "tenant"],
)
TOKENS = Counter(
    "streamspool_tokens_total",
    "Tokens of generations this process gave their outcome: prompt, cached (of the prompt), completion, reasoning (of that)",
    ["provider", "model", "type", "tenant"],
)
COST = Counter(
    "streamspool_cost_usd_total",
    "What they cost, in dollars, as far as that is known",
    ["provider", "model", "tenant"],
)
COST_UNKNOWN = Counter(
    "streamspool_cost_unknown_total",
    "Those that a provider answered and whose cost is not known",
    ["provider", "model"],
)
ATTEMPTS = Counter("streamspool_attempts_total", "Attempts started by this worker", ["reason"])
RUNNING = Gauge("streamspool_generations_running", "Generations running in this worker")
PLACES = Gauge("streamspool_places", "Places of this worker, as of its last beat: taken or free", ["state"])
QUEUE_SECONDS = Histogram("streamspool_queue_seconds", "From accepted to claimed by a worker", buckets=SECONDS)
FIRST_CHUNK_SECONDS = Histogram(
    "streamspool_time_to_first_chunk_seconds",
    "From the request to the provider's first chunk",
    ["provider", "model"],
    buckets=SECONDS,
)
CHUNK_SECONDS = Histogram(
    "streamspool_time_per_chunk_seconds",
    "From one chunk to the next, as the mean of each answer",
    ["provider", "model"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
GENERATION_SECONDS = Histogram(
    "streamspool_generation_seconds", "From claim to seal", ["provider", "model"], buckets=SECONDS
)
ENTRIES_MENDED = Counter(
    "streamspool_entries_mended_total", "Entries of logs that the server had forgotten and this worker wrote again"
)
CONFIRM_SECONDS = Histogram(
    "streamspool_confirm_seconds", "How long the server takes to confirm what it acknowledged", buckets=SECONDS
)
RETAINED_BYTES = Gauge(
    "streamspool_retained_bytes", "Memory for what this worker wrote and the server may still forget; as of this second"
)
CHUNKS = Counter("streamspool_chunks_total", "Chunks written to logs")
UPSTREAM_SECONDS = Histogram(
    "streamspool_upstream_request_seconds",
    "From one request to a provider to its first chunk (status 200), or to its refusal (status, or what broke)",
    ["provider", "status"],
    buckets=SECONDS,
)
UPSTREAM_ERRORS = Counter("streamspool_upstream_errors_total", "Attempts ended by the provider", ["code", "provider"])
UPSTREAM_RETRIES = Counter(
    "streamspool_upstream_retries_total", "Requests made again before the first chunk", ["code", "provider"]
)
FALLBACKS = Counter(
    "streamspool_upstream_fallbacks_total", "Times this one was given up on and the next asked", ["provider"]
)
VIEWERS = Gauge("streamspool_viewers", "Viewers attached to this process")
SOCKETS = Gauge("streamspool_sockets", "WebSockets of clients that are open at this process")
FOLLOWED = Gauge("streamspool_logs_followed", "Logs this process is following")
LOG_BYTES = Gauge(
    "streamspool_log_bytes", "Memory that followed logs take here, and those that were just replayed; as of this second"
)
REPLAY_BYTES = Gauge("streamspool_replay_bytes", "Memory that events of ended logs take here which were read just now")
RESUMES = Counter("streamspool_resumes_total", "Views that started from a cursor")
REPLAYED = Counter("streamspool_replayed_chunks_total", "Chunks that were there before the viewer they were shown to")
VIEWERS_DROPPED = Counter("streamspool_viewers_dropped_total", "Viewers that took no bytes for too long")
REQUESTS = Counter("streamspool_http_requests_total", "Responses sent", ["route", "status"])
LIMITED = Counter(
    "streamspool_limit_rejections_total",
    "Refusals by a limit: requests, tokens, running, waiting, webhooks, batches, viewers; or by a hard budget",
    ["limit", "tenant"],
)
BUDGET_WARNINGS = Counter(
    "streamspool_budget_warnings_total", "Generations accepted although a soft budget was reached", ["tenant"]
)
REDIS_ERRORS = Counter("streamspool_redis_errors_total", "Times a part of this process lost Redis", ["part"])
STORAGE_ERRORS = Counter(
    "streamspool_file_storage_errors_total",
    "Times the file storage did not do what this process asked of it: away, full, refused, invalid",
    ["why"],
)
BATCHES = Gauge("streamspool_batches_running", "Batches this worker hands out the lines of")
BATCH_LINES = Counter(
    "streamspool_batch_lines_total",
    "Lines of batches: completed, failed, skipped by the batch's end, or to be asked again",
    ["result"],
)
BATCH_WINDOW = Gauge(
    "streamspool_batch_window_left_ratio",
    "How much of its window is left to the batch here that has least: 1 at its beginning, 0 at its end; NaN: there is none",
)
WEBHOOKS = Counter(
    "streamspool_webhook_deliveries_total", "Attempts to deliver a webhook, by how they ended", ["outcome"]
)
REAPED = Counter("streamspool_reaped_total", "Generations the reaper took care of", ["action"])
WAITING = Gauge("streamspool_queue_waiting", "Jobs that wait for a worker, as of this scrape", ["lane"])
IN_PLACES = Gauge("streamspool_queue_running", "Jobs that workers have, as of this scrape", ["lane"])
OLDEST_SECONDS = Gauge(
    "streamspool_queue_oldest_seconds", "How long the first in the queue has waited, as of this scrape", ["lane"]
)
REDIS_UP = Gauge("streamspool_redis_up", "Whether Redis answered this scrape")
REDIS_BYTES = Gauge("streamspool_redis_memory_bytes", "Memory Redis uses, as of this scrape")
REDIS_MOST_BYTES = Gauge("streamspool_redis_memory_limit_bytes", "Its maxmemory; 0: no limit")
REDIS_EVICTED = Gauge("streamspool_redis_evicted_keys", "Keys it dropped to make room, since it was started")
REDIS_WRITES = Gauge("streamspool_redis_append_ok", "Whether the last write of its append-only file succeeded")
HISTORY_ROWS = Counter("streamspool_history_rows_total", "Rows this process took into the history")
HISTORY_WAITING = Gauge("streamspool_history_waiting", "Rows that wait in Redis for the history")
HISTORY_LOST = Gauge("streamspool_history_lost", "Rows that waited for so long that they had to make room, ever")
HISTORY_AWAY = Gauge("streamspool_history_away", "Whether the history's database did not answer this process")
WORKERS = Gauge("streamspool_workers", "Workers that were heard of in the last 15 s, as of this scrape")
BUILD = Gauge("streamspool_build_info", "1; the version is a label", ["version"])

# What may happen has a series before it does, so that the first time is an increase.
for _outcome in ("delivered", "retried", "failed"):
    WEBHOOKS.labels(_outcome)
for _action in ("rung", "no_worker", "forgotten"):
    REAPED.labels(_action)
REDIS_ERRORS.labels("broker")
for _why in ("away", "full", "refused", "invalid"):
    STORAGE_ERRORS.labels(_why)
PLACES.labels("free")


class _Names:
    """Which names have a label of their own, as long as the process lives: the first so many."""

    def __init__(self, most: int) -> None:
        self._known: set[str] = set()
        self._most = most

    def label(self, name: str) -> str:
        if name not in self._known and len(self._known) >= self._most:
            return "other"
        self._known.add(name)
        return name


_models, _tenants = _Names(_MODELS), _Names(_TENANTS)
_wanted: frozenset[str] = frozenset()


def switch_on(metrics: Collection[str]) -> None:
    """What is not there by default: `tenants`, the label; `genai`, OpenTelemetry's names beside ours (traces/genai.py)."""
    global _wanted
    _wanted = frozenset(metrics)
    if "tenants" not in _wanted:
        BUDGET_WARNINGS.labels("")
        for limit in "requests tokens running waiting webhooks batches viewers budget".split():
            LIMITED.labels(limit, "")


def wants(metrics: str) -> bool:
    return metrics in _wanted


def tenant_label(tenant: str) -> str:
    """Empty, which to Prometheus is no label, unless tenants are wanted as one."""
    return _tenants.label(tenant) if "tenants" in _wanted else ""


def provider_of(model: str | None) -> str:
    """The label for who was asked. `model` is a target's, `PROVIDER/MODEL`, so that the provider is one that is set up; None
    where nobody was."""
    return model.partition("/")[0] if model else "none"


def answered_by(model: str | None) -> dict[str, str]:
    """The labels of a target: `provider`, and `model` without what follows its `?`."""
    if not model:
        return {"provider": "none", "model": "none"}
    return {"provider": provider_of(model), "model": _models.label(model.partition("?")[0])}


def exposition(accept: str | None) -> tuple[bytes, str]:
    """All metrics of this process, and their content type: Prometheus' text, or OpenMetrics for who asks for that, which has
    exemplars."""
    encode, content_type = choose_encoder(accept or "")
    return encode(REGISTRY), content_type


class _Lines:
    """Where our own lines go, rendered as they are: the standard library would make a record of each, and render that."""

    def __init__(self, name: str) -> None:
        self.name = name

    def info(self, line: str) -> None:
        with suppress(OSError, ValueError):  # nobody reads them, which is no reason to end what they tell of
            sys.stderr.write(f"{line}\n")

    debug = warning = error = critical = info


_encoder = json.JSONEncoder(default=repr)


_Request = str | tuple[str | None, str] | None
"""Its id, and where it is traced, the trace's beside it. A viewer that stays for long holds on to no more than that."""
_request: ContextVar[_Request] = ContextVar("streamspool_request")
"""What every line says of the request. One variable of ours: structlog's has to be looked for among all that a task has, and
this is asked for with every generation."""
_NO_REQUEST: Any = object()


def _name_request(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    found = _request.get(_NO_REQUEST)
    if found is not _NO_REQUEST:
        request_id, trace_id = found if isinstance(found, tuple) else (found, None)
        event.setdefault("request_id", request_id)
        if trace_id is not None:
            event.setdefault("trace_id", trace_id)
    return event


def _as_json(_: object, __: str, event: structlog.typing.EventDict) -> str:
    return _encoder.encode(event)


def configure_logging(level: str) -> None:
    """Sets up the whole process; called once, by its entry point."""
    shared: list[structlog.typing.Processor] = [
        _name_request,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = _as_json
    if sys.stderr.isatty():
        shared.remove(structlog.processors.format_exc_info)
        renderer = structlog.dev.ConsoleRenderer(
            colors="NO_COLOR" not in os.environ,
            exception_formatter=structlog.dev.plain_traceback,  # the default prints variables: prompts and keys
        )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_Lines,
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
    # One line per job and poll from arq, per request from httpx, per plugin from Alembic: ours say the same with the ids that
    # people search for.
    for noisy in ("alembic", "arq", "httpx", "httpcore", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


def begin_request(request_id: str | None, traceparent: str | None = None) -> None:
    """From here on every log line of this task, and of those that it starts, has this `request_id`, and a `trace_id` if
    somebody traces it."""
    _request.set(request_id if traceparent is None else (request_id, traceparent[3:35]))


def current_request() -> str | None:
    """The id of the request that this task works for, if it is known."""
    found = _request.get(None)
    return found[0] if isinstance(found, tuple) else found


class _Logger:
    """structlog's logger of a name, each of whose methods is found once: `configure_logging` says what they are, for good.
    structlog's own asks for the bound logger at each line, also at those that are below the level."""

    def __init__(self, name: str) -> None:
        self._lazy = structlog.get_logger(name)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._lazy, name)
        if structlog.get_config()["cache_logger_on_first_use"]:
            setattr(self, name, method)
        return method


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    return cast("structlog.stdlib.BoundLogger", _Logger(name))
