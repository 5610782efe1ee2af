"""What an API process has, for routes and responses: made by app.py, given to routes by deps.py.

For example, `services.broker` submits generations, `services.batches` batches, and `services.hub` follows logs for viewers.
"""

from __future__ import annotations

from collections.abc import Sequence

from api.bodies import Bodies
from api.live.drain import Drain
from api.live.feed import LiveFeed
from api.live.hot import Replays
from api.live.hub import Hub
from api.live.viewers import Viewers
from shared.config.settings import Settings
from shared.features.access.browsers import Browsers
from shared.features.access.key_ring import KeyRing
from shared.features.access.shares import Shares
from shared.features.history.history import History
from shared.features.installation import Installation
from shared.features.tokens import Tokens
from shared.generations.caller import Caller
from shared.generations.core import Core
from shared.generations.providers import Providers
from shared.generations.remembered import Remembered
from shared.log.streamlog import StreamLog
from shared.store.backlog import Backlog
from shared.store.confirm import Confirmer
from shared.store.redis import ArqRedis


class Services(Core):
    """One of each, for as long as the process runs."""

    def __init__(
        self,
        redis: ArqRedis,
        log: StreamLog,
        settings: Settings,
        hub: Hub,
        drain: Drain,
        *,
        name: str,
        confirmer: Confirmer | None = None,
    ) -> None:
        super().__init__(redis, log, settings, name=name, confirmer=confirmer)
        self.tokens = Tokens(redis)
        self.installation = Installation(redis)
        self.backlog = Backlog(redis)
        self.providers = Providers(redis, self.catalogue)
        self.history: History | None = None
        if settings.keeps_history and settings.history_url is not None:
            self.history = History(settings.history_url.get_secret_value())
        self.remembered = Remembered(self.broker, self.history) if self.history else None
        self.shares = Shares(redis, self.audit)
        self.browsers = Browsers(redis, idle_s=int(settings.console_idle_s))
        self.viewers = Viewers(redis)
        self.ring = KeyRing(self.keys)
        self.limiter.told = self.ring.limits
        self.configured: Sequence[Caller] = ()
        """Those of the keys in the environment."""
        self.ring.on_ended = self.viewers.turn_out
        self.bodies = Bodies(settings.intake_bytes)
        self.hub, self.settings, self.drain, self.name = hub, settings, drain, name
        self.replays = Replays(log)
        self.feed: LiveFeed
        """Set by app.py: it needs what is made here."""

    @property
    def tenants(self) -> set[str]:
        """All that have a key, or had one."""
        return {caller.tenant for caller in self.configured} | self.ring.tenants
