"""Every Redis key Streamspool owns, spelled here and nowhere else.

Hidden here: that all of them begin with the prefix of this installation, written `streamspool` below, so that two in one
database never see each other. A prefix holds no colon, so no key of one is a key of the other.

Names are written here as they are on one node. Where there are cells (cluster/cells.py), a tag stands behind the prefix: a
cell's, as in `streamspool{07-12}:{ID}:log`, for what is a generation's or a session's, `open`, `unsettled`, `index`, `stored`
and `sessions`; else `{control}`, also where that is on a server of its own. Tenants and ids are checked where they enter
(config.py, broker.py), so no foreign text reaches a key.

| key | type | lives |
| --- | --- | --- |
| `streamspool:{ID}:log` | stream | retention after the seal; a safety bound while it runs |
| `streamspool:{ID}:viewers` | string: there are viewers; only with on_disconnect=cancel | the grace time |
| `streamspool:{ID}:metadata` | string, JSON: other metadata; `false`: deleted, see `continued` | as long as the log |
| `streamspool:idempotency:TENANT:SHA256` | string, JSON of id and body hash | as long as what it stands for can live |
| `streamspool:asked:TENANT:SHA256` | string: the newest generation of this request | `STREAMSPOOL_GENERATION_S` and 3 minutes |
| `streamspool:asked:TENANT:SHA256:refused` | string: how many were refused and may be repeated | 10 s, and `Retry-After` |
| `streamspool:index:TENANT` | zset, score = created ms | retention and safety bound after the last create |
| `streamspool:stored:TENANT` | zset, score = created ms: with `store` | stored retention and safety bound after the last |
| `streamspool:open` | zset, score = created ms: not yet sealed | permanent, emptied by seals and reaper |
| `streamspool:cells` | string: how many cells; then `apart` or `moving`, the queue's server. With the logs | permanent |
| `streamspool:events` | stream of what happens, see feed.py: `STREAMSPOOL_EVENTS_KEPT` entries | permanent |
| `streamspool:watching:PROCESS` | string, JSON: how many watch what through that API process | 15 s |
| `streamspool:watching` | set of API processes that have viewers | 1 day after one of them said so |
| `streamspool:keys` | hash, id to JSON: the API keys that are data, see shared/features/access | permanent |
| `streamspool:limits` | hash, tenant to JSON: limits that were set while the server runs | permanent |
| `streamspool:keys-version` | string, random: another one after each change of a key, or of limits | permanent |
| `streamspool:secret` | string, 64 random bytes: encrypts what clients carry, see installation.py | permanent |
| `streamspool:limit:KIND:SCOPE` | hash of counts by second, or zset of ids: limits.py | 61 s; as long as a log can run |
| `streamspool:limit:KIND:SCOPE:sum` | hash: what the counts add up to in this second, until one of them is corrected | 61 s |
| `streamspool:keys-used` | hash, id to Unix seconds: when a key was used last | 400 days after the last use |
| `streamspool:audit` | stream of changes of keys and limits, see audit.py: 100,000 entries | permanent |
| `streamspool:token:SHA256` | string, JSON: the stream a token or share opens, and whose | as asked for, 30 days at most |
| `streamspool:{ID}:shares` | hash, id to JSON: the shares of an answer, see access/shares.py | as long as the longest of them |
| `streamspool:console:SHA256` | string, JSON: who signed in, see access/browsers.py | `STREAMSPOOL_CONSOLE_IDLE_S` |
| `streamspool:console-failed:SHA256` | string, number: how often an address was refused to sign in | 60 s |
| `streamspool:{ID}:deleted` | string: its owner deleted it, and no worker is to write it again | 60 s |
| `streamspool:{ID}:continued` | string: a response goes on from it | as long as that one |
| `streamspool:{ID}:settled` | string: what follows from the outcome was done | longer than the log; archived: 2 hours |
| `streamspool:{ID}:charged` | string: what of it is the control's was done; only where that is apart | as `settled` |
| `streamspool:unsettled` | set of ids sealed and not yet settled | permanent, emptied by settlements and reaper |
| `streamspool:webhooks` | zset of subjects with an event to deliver, score = due ms | permanent, emptied by workers |
| `streamspool:{ID}:webhook` | hash: an event and its delivery, see webhooks.py | longer than the log, and than it is tried |
| `streamspool:{ID}:webhook:lease` | string: a worker is delivering it | `STREAMSPOOL_WEBHOOK_TIMEOUT_S` and 5 s |
| `streamspool:session:{TENANT:SESSION}:head`, `…:turns`, `…:open` | hash, stream, zset: sessions.py | session retention |
| `streamspool:sessions:TENANT` | zset, score = last used ms | as long as the newest session |
| `streamspool:file:FILE` | string, JSON: the file object and its owner | until the file expires |
| `streamspool:files:TENANT` | zset, score = created ms | until the last of them expires |
| `streamspool:file-bytes:TENANT` | hash, bytes of each file, or of an upload that runs | 31 days after the last |
| `streamspool:files-end` | zset, score = ms when what is stored of a file goes | permanent, emptied by the reaper |
| `streamspool:blob:TENANT:SHA256` | hash: which copy of a blob is stored, and who holds it | 400 days after it was held last |
| `streamspool:{HOLDER}:blobs` | hash: what a log or a session holds, by SHA-256 | until the reaper finds it gone; 400 days |
| `streamspool:blob-holders` | zset, score = ms when it is looked whether it is gone | permanent, emptied by the reaper |
| `streamspool:blob-bytes:TENANT` | string, number: what its blobs take in the storage | 400 days after the last one |
| `streamspool:to-archive` | zset of settled ids, score = ms when their logs become objects | permanent, emptied by the reaper |
| `streamspool:{ID}:archiving` | string, random: the process that makes an object of it | 2 minutes |
| `streamspool:{ID}:kept` | stream: a copy of its log, or what stays of it, before it takes that name | in a transaction |
| `streamspool:archived` | zset of logs' objects, score = ms when the log will be gone | permanent, emptied by the reaper |
| `streamspool:batch:BATCH` | string, JSON: a batch, and how far it is | its window and files retention after the last change |
| `streamspool:batches:TENANT` | zset, score = created ms | as long as the newest batch can live |
| `streamspool:batches-open` | zset, score = created ms: not yet ended | permanent, emptied by workers |
| `streamspool:batch-demand:BATCH` | string, JSON: whose it is, and how many lines it could have open | 5 s |
| `streamspool:circuit:SHA256` | string, JSON: whether a model is left alone because its provider is away | 5 minutes |
| `streamspool:usage-row:TENANT:HOUR:ROW` | hash, a row: spend/ledger.py | until the hour is folded; 400 days |
| `streamspool:usage-index:TENANT:HOUR` | hash: what each of the hour's rows is of | until the hour is folded; 400 days |
| `streamspool:usage-hours:TENANT` | zset of hours, `2026-11-22T05`, not yet in their day | 400 days after the last entry |
| `streamspool:usage-day:TENANT:YYYY-MM-DD` | hash, a day of the ledger, a row a field | 400 days after its last hour |
| `streamspool:spent:TENANT:YYYY-MM` | hash, pico-dollars by month, day, and key: spend/budgets.py | 400 days after the last |
| `streamspool:held:SCOPE` | hash, pico-dollars by hour: what open answers may cost; budgets.py | as long as a log can run |
| `streamspool:usage-tenants` | zset of tenants, score = ms of an entry in their last hour | 400 days after the last of these |
| `streamspool:usage-folding` | string: hours were added to their days | 10 minutes |
| `streamspool:usage:TENANT:YYYY-MM-DD` | hash, the ledger of older versions, by day and model | 400 days after the last entry |
| `streamspool:history` | stream of rows that wait for the history: `STREAMSPOOL_HISTORY_WAITING` | permanent, emptied by APIs |
| `streamspool:history-count` | hash: rows that were ever added to it, and taken | permanent |
| `streamspool:history-sink` | string: the process that takes them | 10 s |
| `streamspool:worker:WORKER` | string, JSON heartbeat: see heartbeat.py | 15 s |
| `streamspool:workers` | set of worker ids | 1 day after the last heartbeat |
| `streamspool:resting` | set of ids of workers that are to begin nothing | 1 day after it was changed |
| `streamspool:catalogue` | string, JSON of providers and models | 1 day after the last heartbeat |
| `streamspool:provider-tests` | set of providers that an admin wants to be asked | 30 s |
| `streamspool:provider-test:PROVIDER` | string, JSON: what came of asking it | 60 s |
| `streamspool:models:PROVIDER` | string, JSON: what the provider lists, 512 KiB at most | 1 day after it last said so |
| `streamspool:models-turn:PROVIDER` | string: it is being asked, or not yet to be | 15 s; `STREAMSPOOL_MODELS_REFRESH_S` |
| `streamspool:reaping` | string: a process is on it | 2.5 s |
| `streamspool:blobs-searched` | string: the storage was searched for blobs that nothing names | 1 day |
| `streamspool:probe` | string: writes are taken | 60 s |
| `streamspool:marker:PROCESS` | string: what that process asks the server to confirm | 60 s |
| `streamspool:hub:PROCESS` | stream of at most one entry: interrupts that hub's blocking read, where it uses one | 60 s |
| `streamspool:queue:LANE:TENANT` | zset of jobs that wait, score = enqueued ms | permanent, emptied by workers and cancels |
| `streamspool:tenants:LANE` | zset of tenants that have jobs waiting, score = tag: turns.py | permanent, emptied by workers |
| `streamspool:tags:LANE` | zset of tags that tenants left with, and the lane's clock | 1 day after the last change |
| `streamspool:running:LANE` | zset of jobs that run, score = ms when the lease was to end | permanent, emptied by workers |
| `streamspool:job:ID` | string, JSON: the job, waiting or running | as long as the log can live; of a batch, 7 days |
| `streamspool:lease:ID` | string: the worker that runs the job | `STREAMSPOOL_LEASE_S` after the last renewal |
| `streamspool:reaper` | string: keeps the reapers of older versions away | 15 s |
| `arq:queue`, `arq:job:ID`, `arq:in-progress:ID`, `arq:retry:ID` | an older version's, taken over | its own |
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from shared.config.settings import PREFIX
from shared.store.cluster.cells import CONTROL, Cells, tags

SUM = ":sum"
"""Ends the key of what a limit's counts add up to: the script that counts has it from theirs (conditional.py)."""


ONE = Cells()
"""As it is on one node."""


class Lane(StrEnum):
    """What waits and runs apart from the rest, because it has places of its own."""

    GENERATION = "generation"
    """One that a client waits for."""
    BACKGROUND = "background"
    """One that was asked for with `background`: it comes after those."""
    LINE = "line"
    """A generation that is a line of a batch: it comes after both."""
    BATCH = "batch"
    """It hands out its lines, and takes no place of theirs."""


class SessionKeys(NamedTuple):
    """The three keys of a session."""

    head: str
    turns: str
    open: str


class OldKeys:
    """What the queue was called before it was ours: arq's own names, the same for all its applications in this database."""

    queue = "arq:queue"
    reaper = f"{PREFIX}:reaper"

    def job(self, job_id: str) -> str:
        return f"arq:job:{job_id}"

    def lease(self, job_id: str) -> str:
        return f"arq:in-progress:{job_id}"

    def tries(self, job_id: str) -> str:
        return f"arq:retry:{job_id}"


class Keys:
    """The names of one installation's keys, and of its pub/sub channel. A client has them as `redis.key`."""

    def __init__(self, prefix: str = PREFIX, cells: Cells = ONE) -> None:
        """`prefix` is checked in config.py. Where there are `cells`, the names of each have its tag behind the prefix."""
        self.prefix, self.cells = prefix, cells
        self._stems = [prefix] if cells.count == 1 else [f"{prefix}{{{tag}}}" for tag in tags(cells.count)]
        self._stem = prefix if cells.count == 1 else ""
        """What all names begin with, if there is one cell: most look no further."""
        self._control = control = f"{prefix}{CONTROL}" if cells.apart else prefix
        self.number_of_cells = f"{control}:cells"
        self.events = f"{control}:events"
        self.watching = f"{control}:watching"
        self.provider_tests = f"{control}:provider-tests"
        self.webhooks = f"{control}:webhooks"
        self.workers, self.resting = f"{control}:workers", f"{control}:resting"
        self.catalogue = f"{control}:catalogue"
        self.files_end, self.to_archive = f"{control}:files-end", f"{control}:to-archive"
        self.blob_holders = f"{control}:blob-holders"
        self.batches_open = f"{control}:batches-open"
        self.keys, self.keys_version = f"{control}:keys", f"{control}:keys-version"
        self.audit = f"{control}:audit"
        self.secret = f"{control}:secret"
        self.limits = f"{control}:limits"
        self.history, self.history_count = f"{control}:history", f"{control}:history-count"
        self.history_sink = f"{control}:history-sink"
        self.keys_used = f"{control}:keys-used"
        self.reaping, self.blobs_searched = f"{control}:reaping", f"{control}:blobs-searched"
        self.probe = f"{control}:probe"
        self.usage_tenants = f"{control}:usage-tenants"
        self.usage_folding = f"{control}:usage-folding"
        self.doorbell = f"{control}:doorbell"
        """Pub/sub channel: the payload is the id of a generation just enqueued."""
        self._permanent = frozenset(
            {
                self.number_of_cells,
                *(name(cell) for name in (self.open, self.unsettled, self.archived) for cell in cells.all),
                self.events,
                self.webhooks,
                *(self.files_end, self.to_archive),
                self.blob_holders,
                self.batches_open,
                self.keys,
                self.keys_version,
                self.audit,
                self.secret,
                self.limits,
                *map(self.tenants, Lane),
                *map(self.running, Lane),
            }
        )
        self.old = OldKeys() if prefix == PREFIX and not cells.apart else None
        """Where an older version may have left work: it knew no prefix."""

    def is_permanent(self, name: str) -> bool:
        """Whether a key may exist without a TTL; every other one of ours must have one."""
        if name in (self.history, self.history_count):
            return True
        return name in self._permanent or name.startswith(f"{self._control}:queue:")

    def _of(self, generation_id: str) -> str:
        """What its names begin with."""
        return self._stems[self.cells.of(generation_id)]

    def log(self, generation_id: str) -> str:
        return f"{self._stem or self._of(generation_id)}:{{{generation_id}}}:log"

    def viewers(self, generation_id: str) -> str:
        return f"{self._stem or self._of(generation_id)}:{{{generation_id}}}:viewers"

    def watching_through(self, process_id: str) -> str:
        return f"{self._control}:watching:{process_id}"

    def metadata(self, generation_id: str) -> str:
        return f"{self._stem or self._of(generation_id)}:{{{generation_id}}}:metadata"

    def idempotency(self, tenant: str, digest: str) -> str:
        return f"{self._control}:idempotency:{tenant}:{digest}"

    def asked(self, tenant: str, digest: str) -> str:
        return f"{self._control}:asked:{tenant}:{digest}"

    def refused(self, asked: str) -> str:
        return f"{asked}:refused"

    def limit(self, kind: str, scope: str) -> str:
        return f"{self._control}:limit:{kind}:{scope}"

    def limit_sum(self, kind: str, scope: str) -> str:
        return f"{self.limit(kind, scope)}{SUM}"

    def token(self, digest: str) -> str:
        return f"{self._control}:token:{digest}"

    def shares(self, generation_id: str) -> str:
        return f"{self._stem or self._of(generation_id)}:{{{generation_id}}}:shares"

    def console(self, digest: str) -> str:
        return f"{self._control}:console:{digest}"

    def console_failed(self, digest: str) -> str:
        return f"{self._control}:console-failed:{digest}"

    def deleted(self, generation_id: str) -> str:
        return f"{self._stem or self._of(generation_id)}:{{{generation_id}}}:deleted"

    def continued(self, generation_id: str) -> str:
        return f"{self._stem or self._of(generation_id)}:{{{generation_id}}}:continued"

    def settled(self, generation_id: str) -> str:
        return f"{self._stem or self._of(generation_id)}:{{{generation_id}}}:settled"

    def charged(self, generation_id: str) -> str:
        return f"{self._control}:{{{generation_id}}}:charged"

    def archiving(self, generation_id: str) -> str:
        return f"{self._stem or self._of(generation_id)}:{{{generation_id}}}:archiving"

    def kept(self, generation_id: str) -> str:
        return f"{self._stem or self._of(generation_id)}:{{{generation_id}}}:kept"

    def webhook(self, subject: str) -> str:
        return f"{self._control}:{{{subject}}}:webhook"

    def webhook_lease(self, subject: str) -> str:
        return f"{self._control}:{{{subject}}}:webhook:lease"

    def session(self, tenant: str, session_id: str) -> SessionKeys:
        cell = self._stems[self.cells.of_session(tenant, session_id)]
        stem = f"{cell}:session:{{{tenant}:{session_id}}}"
        return SessionKeys(f"{stem}:head", f"{stem}:turns", f"{stem}:open")

    def sessions(self, tenant: str, cell: int) -> str:
        return f"{self._stems[cell]}:sessions:{tenant}"

    def file(self, file_id: str) -> str:
        return f"{self._control}:file:{file_id}"

    def files(self, tenant: str) -> str:
        return f"{self._control}:files:{tenant}"

    def blob(self, tenant: str, digest: str) -> str:
        return f"{self._control}:blob:{tenant}:{digest}"

    def blobs_of(self, holder: str) -> str:
        return f"{self._control}:{{{holder}}}:blobs"

    def blob_bytes(self, tenant: str) -> str:
        return f"{self._control}:blob-bytes:{tenant}"

    def batch(self, batch_id: str) -> str:
        return f"{self._control}:batch:{batch_id}"

    def batches(self, tenant: str) -> str:
        return f"{self._control}:batches:{tenant}"

    def batch_demand(self, batch_id: str) -> str:
        return f"{self._control}:batch-demand:{batch_id}"

    def circuit(self, digest: str) -> str:
        return f"{self._control}:circuit:{digest}"

    def usage(self, tenant: str, day: str) -> str:
        return f"{self._control}:usage:{tenant}:{day}"

    def spent(self, tenant: str, month: str) -> str:
        return f"{self._control}:spent:{tenant}:{month}"

    def file_bytes(self, tenant: str) -> str:
        return f"{self._control}:file-bytes:{tenant}"

    def held(self, scope: str) -> str:
        return f"{self._control}:held:{scope}"

    def usage_row(self, tenant: str, hour: str, row: str) -> str:
        return f"{self._control}:usage-row:{tenant}:{hour}:{row}"

    def usage_index(self, tenant: str, hour: str) -> str:
        return f"{self._control}:usage-index:{tenant}:{hour}"

    def usage_hours(self, tenant: str) -> str:
        return f"{self._control}:usage-hours:{tenant}"

    def usage_day(self, tenant: str, day: str) -> str:
        return f"{self._control}:usage-day:{tenant}:{day}"

    def open(self, cell: int) -> str:
        return f"{self._stems[cell]}:open"

    def unsettled(self, cell: int) -> str:
        return f"{self._stems[cell]}:unsettled"

    def archived(self, cell: int) -> str:
        return f"{self._stems[cell]}:archived"

    def index(self, tenant: str, cell: int) -> str:
        return f"{self._stems[cell]}:index:{tenant}"

    def stored(self, tenant: str, cell: int) -> str:
        return f"{self._stems[cell]}:stored:{tenant}"

    def worker(self, worker_id: str) -> str:
        return f"{self._control}:worker:{worker_id}"

    def provider_test(self, provider: str) -> str:
        return f"{self._control}:provider-test:{provider}"

    def model_list(self, provider: str) -> str:
        return f"{self._control}:models:{provider}"

    def model_turn(self, provider: str) -> str:
        return f"{self._control}:models-turn:{provider}"

    def marker(self, process_id: str, cell: int | None) -> str:
        """In a cell, or in the control."""
        return f"{self._control if cell is None else self._stems[cell]}:marker:{process_id}"

    def hub(self, process_id: str, cell: int) -> str:
        return f"{self._stems[cell]}:hub:{process_id}"

    def waiting(self, lane: Lane, tenant: str) -> str:
        return f"{self._control}:queue:{lane}:{tenant}"

    def tenants(self, lane: Lane) -> str:
        return f"{self._control}:tenants:{lane}"

    def tags(self, lane: Lane) -> str:
        return f"{self._control}:tags:{lane}"

    def running(self, lane: Lane) -> str:
        return f"{self._control}:running:{lane}"

    def job(self, job_id: str) -> str:
        return f"{self._control}:job:{job_id}"

    def lease(self, job_id: str) -> str:
        return f"{self._control}:lease:{job_id}"
