"""Every Redis key Streamspool owns, spelled here and nowhere else.

`{…}` is a cluster hash tag: all keys of one generation live in one slot. Tenants and ids are checked where they
enter (config.py, broker.py), so no foreign text reaches a key.

| key | type | lives |
| --- | --- | --- |
| `streamspool:{ID}:log` | stream | retention after the seal; a safety bound while it runs |
| `streamspool:{ID}:viewers` | string: somebody watches; only with on_disconnect=cancel | the grace time |
| `streamspool:{ID}:metadata` | string, JSON: metadata that replaced the request's | as long as the log |
| `streamspool:idempotency:TENANT:SHA256` | string, JSON of id and body hash | as long as the log can live |
| `streamspool:index:TENANT` | zset, score = created ms | retention and safety bound after the last create |
| `streamspool:stored:TENANT` | zset, score = created ms: with `store` | stored retention and safety bound after the last |
| `streamspool:open` | zset, score = created ms: not yet sealed | permanent, emptied by seals and reaper |
| `streamspool:{ID}:settled` | string: what follows from the outcome was done | longer than the log |
| `streamspool:unsettled` | set of ids sealed and not yet settled | permanent, emptied by settlements and reaper |
| `streamspool:webhooks` | zset of subjects with an event to deliver, score = due ms | permanent, emptied by workers |
| `streamspool:{ID}:webhook` | hash: an event and its delivery, see webhooks.py | longer than the log, and than it is tried |
| `streamspool:{ID}:webhook:lease` | string: a worker is delivering it | `STREAMSPOOL_WEBHOOK_TIMEOUT_S` and 5 s |
| `streamspool:session:{TENANT:SESSION}:head`, `…:turns`, `…:open` | hash, stream, zset: sessions.py | session retention |
| `streamspool:sessions:TENANT` | zset, score = last used ms | as long as the newest session |
| `streamspool:file:FILE` | string, JSON: the file object and its owner | until the file expires |
| `streamspool:files:TENANT` | zset, score = created ms | until the last of them expires |
| `streamspool:files-end` | zset, score = ms when what is stored of a file goes | permanent, emptied by the reaper |
| `streamspool:batch:BATCH` | string, JSON: a batch, and how far it is | its window and files retention after the last change |
| `streamspool:batches:TENANT` | zset, score = created ms | as long as the newest batch can live |
| `streamspool:batches-open` | zset, score = created ms: not yet ended | permanent, emptied by workers |
| `streamspool:batch-demand:BATCH` | string, JSON: whose it is, and how many lines it could have open | 5 s |
| `streamspool:usage:TENANT:YYYY-MM-DD` | hash, the ledger: see usage.py | 400 days after the last entry |
| `streamspool:worker:WORKER` | string, JSON heartbeat | 15 s |
| `streamspool:workers` | set of worker ids | 1 day after the last heartbeat |
| `streamspool:catalogue` | string, JSON of providers and models | 1 day after the last heartbeat |
| `streamspool:reaper` | string: somebody is on it | 2.5 s |
| `streamspool:hub:PROCESS` | stream of at most one entry: interrupts that hub's blocking read | 60 s |
| `arq:queue`, `arq:job:ID`, `arq:in-progress:ID`, `arq:retry:ID` | arq's own | arq's own |
"""

from __future__ import annotations

from typing import NamedTuple

QUEUE = "arq:queue"
IN_PROGRESS_PREFIX = "arq:in-progress:"
RETRY_PREFIX = "arq:retry:"
OPEN = "streamspool:open"
UNSETTLED = "streamspool:unsettled"
WEBHOOKS = "streamspool:webhooks"
WORKERS = "streamspool:workers"
CATALOGUE = "streamspool:catalogue"
FILES_END = "streamspool:files-end"
BATCHES_OPEN = "streamspool:batches-open"
REAPER = "streamspool:reaper"
DOORBELL = "streamspool:doorbell"
"""Pub/sub channel: the payload is the id of a generation just enqueued."""

PERMANENT = frozenset({OPEN, QUEUE, UNSETTLED, WEBHOOKS, FILES_END, BATCHES_OPEN})
"""Keys that may exist without a TTL; every other key of ours must have one."""


def log(generation_id: str) -> str:
    return f"streamspool:{{{generation_id}}}:log"


def viewers(generation_id: str) -> str:
    return f"streamspool:{{{generation_id}}}:viewers"


def metadata(generation_id: str) -> str:
    return f"streamspool:{{{generation_id}}}:metadata"


def idempotency(tenant: str, digest: str) -> str:
    return f"streamspool:idempotency:{tenant}:{digest}"


def settled(generation_id: str) -> str:
    return f"streamspool:{{{generation_id}}}:settled"


def webhook(subject: str) -> str:
    return f"streamspool:{{{subject}}}:webhook"


def webhook_lease(subject: str) -> str:
    return f"streamspool:{{{subject}}}:webhook:lease"


class SessionKeys(NamedTuple):
    """The three keys of a session."""

    head: str
    turns: str
    open: str


def session(tenant: str, session_id: str) -> SessionKeys:
    stem = f"streamspool:session:{{{tenant}:{session_id}}}"
    return SessionKeys(f"{stem}:head", f"{stem}:turns", f"{stem}:open")


def sessions(tenant: str) -> str:
    return f"streamspool:sessions:{tenant}"


def file(file_id: str) -> str:
    return f"streamspool:file:{file_id}"


def files(tenant: str) -> str:
    return f"streamspool:files:{tenant}"


def batch(batch_id: str) -> str:
    return f"streamspool:batch:{batch_id}"


def batches(tenant: str) -> str:
    return f"streamspool:batches:{tenant}"


def batch_demand(batch_id: str) -> str:
    return f"streamspool:batch-demand:{batch_id}"


def usage(tenant: str, day: str) -> str:
    return f"streamspool:usage:{tenant}:{day}"


def index(tenant: str) -> str:
    return f"streamspool:index:{tenant}"


def stored(tenant: str) -> str:
    return f"streamspool:stored:{tenant}"


def worker(worker_id: str) -> str:
    return f"streamspool:worker:{worker_id}"


def hub(process_id: str) -> str:
    return f"streamspool:hub:{process_id}"


def tries(generation_id: str) -> str:
    return RETRY_PREFIX + generation_id


def in_progress(generation_id: str) -> str:
    return IN_PROGRESS_PREFIX + generation_id
