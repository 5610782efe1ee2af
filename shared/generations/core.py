"""What both kinds of process are made of: generations, and the features around them, put together in their order.

Hidden here: which of them needs which. An API process adds its hub to these (`api/services.py`), a worker its providers.
"""

from __future__ import annotations

from shared.config.settings import Settings
from shared.features.access.audit import Audit
from shared.features.access.keys import KeyStore
from shared.features.access.limits import Limiter
from shared.features.archive.archiver import Archiver
from shared.features.batches import Batches
from shared.features.blobs import Blobs
from shared.features.chains import Chains
from shared.features.conversations import Conversations
from shared.features.effect import Effect
from shared.features.files import Files
from shared.features.forgotten import Forgotten
from shared.features.history.outbox import Outbox
from shared.features.listing.settled import SettledEvents
from shared.features.sessions import Sessions
from shared.features.spend.budgets import Budgets
from shared.features.spend.ledger import Ledger
from shared.features.spend.prices import Prices
from shared.features.webhooks import Webhooks
from shared.generations.broker import Broker
from shared.generations.catalogue import Catalogue
from shared.generations.outcome import Outcomes, Transcripts
from shared.generations.settlement import Settlement
from shared.generations.tenant_sessions import TenantConversations, TenantSessions
from shared.log.feed import Feed
from shared.log.streamlog import StreamLog
from shared.store.confirm import Confirmer
from shared.store.redis import ArqRedis


class Core:
    """One of each, for one connection pool. None of them holds anything that has to be closed."""

    def __init__(
        self,
        redis: ArqRedis,
        log: StreamLog,
        settings: Settings,
        *,
        name: str,
        confirmer: Confirmer | None = None,
    ) -> None:
        """`name` is this process, as outcomes have it; without a confirmer nothing that is accepted is confirmed."""
        self.catalogue = Catalogue(redis)
        self.keys, self.audit = KeyStore(redis, confirmer), Audit(redis)
        self.ledger = Ledger(redis, settings.ledger_rows)
        self.webhooks = Webhooks(redis, settings)
        self.files = Files(redis, settings, confirmer)
        self.blobs = log.filler = Blobs(redis, settings, lambda: self.files.storage)
        self.archiver = Archiver(redis, log, settings, lambda: self.files.storage)
        self.files.is_needed = self.archiver.is_needed
        self.forgotten = Forgotten(redis, settings, lambda: self.files.storage)
        self.batches = Batches(redis, self.files, self.webhooks, settings, confirmer)
        sessions = Sessions(redis, settings, self.blobs)
        self.chains = Chains(log, self.blobs)
        transcripts = Transcripts(log, sessions, self.chains, self.blobs)
        self.prices = Prices(settings.prices, settings.providers)
        self.budgets = Budgets(redis, settings, self.webhooks, self.prices)
        self.limiter = Limiter(redis, settings)
        self.blobs.limit = lambda tenant: self.limiter.of_tenant(tenant).stored_bytes
        self.files.limit = lambda tenant: self.limiter.of_tenant(tenant).file_bytes
        log.feed = Feed(redis.key.events, settings.events_kept) if settings.events_kept else None
        outbox = self.outbox = Outbox(redis, log, most=settings.history_waiting if settings.keeps_history else 0)
        effects: list[Effect] = [self.ledger, self.budgets, sessions, self.webhooks, self.limiter, self.archiver]
        effects += [SettledEvents(log.feed), outbox]
        self.settlement = Settlement(redis, log, effects, sessions, self.budgets, transcripts.read, settings, outbox)
        self.outcomes = Outcomes(log, transcripts, self.settlement, self.prices, name=name)
        self.broker = Broker(
            redis,
            log,
            settings,
            catalogue=self.catalogue,
            sessions=sessions,
            blobs=self.blobs,
            webhooks=self.webhooks,
            outcomes=self.outcomes,
            settlement=self.settlement,
            limiter=self.limiter,
            budgets=self.budgets,
            confirmer=confirmer,
        )
        self.sessions = TenantSessions(sessions, self.settlement, self.broker)
        self.conversations = TenantConversations(Conversations(redis, sessions, self.blobs), self.settlement)
