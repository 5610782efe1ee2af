"""Who asks: the tenant that a request belongs to, the key it came with, and what that key may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["member", "admin", "viewer"]
"""`member` asks and reads; `admin` may also look after the server; `viewer` only reads what it was given a token for."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a key may use; None: as much as it asks for. Nothing enforces them yet (`RateLimited` is what will say so)."""

    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    at_once: int | None = None
    """Generations that are open at the same time."""


UNLIMITED = Limits()


@dataclass(frozen=True, slots=True)
class Caller:
    """`tenant` owns what it starts; another key of the tenant finds it as well."""

    tenant: str
    key_id: str | None = None
    """Which of the tenant's keys, without its secret; None where there are no keys, and for what the server does itself."""
    role: Role = "member"
    limits: Limits = UNLIMITED
