"""What an API process has, for routes and responses: made by app.py, given to routes by deps.py."""

from __future__ import annotations

from dataclasses import dataclass

from api.live.drain import Drain
from api.live.hub import Hub
from shared.config.settings import Settings
from shared.generations.broker import Broker


@dataclass(frozen=True, slots=True)
class Services:
    """One of each, for as long as the process runs."""

    hub: Hub
    broker: Broker
    settings: Settings
    drain: Drain
