"""What an API process has, for routes and responses: made by app.py, given to routes by deps.py.

For example, `services.broker` submits generations, `services.batches` batches, and `services.hub` follows logs for viewers.
"""

from __future__ import annotations

from api.admission import admit
from api.bodies import Bodies
from api.live.drain import Drain
from api.live.hub import Hub
from shared.config.settings import Settings
from shared.features.tokens import Tokens
from shared.generations.core import Core
from shared.log.streamlog import StreamLog
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
        super().__init__(redis, log, settings, name=name, confirmer=confirmer, admit=admit)
        self.tokens = Tokens(redis)
        self.bodies = Bodies(settings.intake_bytes)
        self.hub, self.settings, self.drain = hub, settings, drain
