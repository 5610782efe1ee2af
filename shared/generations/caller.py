"""Who asks: the tenant that a request belongs to, the key it came with, and what that key may do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from shared.config.limits import UNLIMITED, Limits
from shared.config.tenants import EVERY_TENANT
from shared.errors import Forbidden
from shared.features.access.audit import Actor
from shared.features.access.keys import Role
from shared.features.tokens import Share

__all__ = ["Caller", "Limits", "Role"]


@dataclass(frozen=True, slots=True)
class Caller:
    """`tenant` owns what it starts; another key of the tenant finds it as well."""

    tenant: str
    key_id: str | None = None
    """Which of the tenant's keys, without its secret; None where there are no keys, and for what the server does itself."""
    role: Role = "tenant"
    limits: Limits = UNLIMITED
    models: tuple[str, ...] | None = None
    """Patterns of the names that it may ask for; None: all."""
    ratelimits: dict[str, str] | None = field(default=None, compare=False)
    """Where the response's `x-ratelimit-…` headers are put, of one request that is limited."""
    budgets: Mapping[str, float] = field(default_factory=dict, hash=False)
    """What the key may spend, `{day_usd: 10.0}`; empty: as much as it asks for."""

    share: Share | None = None
    """By which share it asks; None: by none."""

    def for_one_request(self) -> Caller:
        """The same, with a place for the `x-ratelimit-…` headers of one request. What dataclasses' `replace` would make, at a
        fifth of its cost: every request under a limit comes by here."""
        return Caller(self.tenant, self.key_id, self.role, self.limits, self.models, {}, self.budgets, self.share)

    @property
    def is_everyone(self) -> bool:
        """Whether an admin asks for what all tenants have, which only some lists show."""
        return self.tenant == EVERY_TENANT

    @property
    def actor(self) -> Actor:
        """As the audit log has it."""
        return Actor(self.key_id, self.tenant)

    def may_ask(self, model: str) -> bool:
        """Whether a model may be asked for, by the name that a request has."""
        return self.models is None or any(fnmatchcase(model, pattern) for pattern in self.models)

    def check_model(self, model: str) -> None:
        """Raises Forbidden."""
        if not self.may_ask(model):
            raise Forbidden(
                "This key may not ask for this model. GET /v1/models lists those it may.",
                code="model_not_allowed",
                param="model",
            )
