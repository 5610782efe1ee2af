"""Settings as `streamspool config` shows them: as they are written in the environment, and without secrets."""

from __future__ import annotations

import json
from typing import Any

from shared.config.redis_url import without_password
from shared.config.tenants import EVERY_TENANT


def shown(name: str, value: Any) -> str:
    """A setting as it is written in the environment, without secrets."""
    if name == "redis_url":
        return without_password(value.get_secret_value()) if value else "(embedded Valkey)"
    if name in ("api_keys", "admin_keys"):
        return ",".join(f"{tenant}:****" for tenant, keys in value.items() for _ in keys)
    if name == "webhook_secret":
        return ",".join(_tenants(dict.fromkeys(value, "****")))
    if name == "providers":
        return ", ".join(f"{key} ({row.base_url})" for key, row in value.items())
    if name == "budgets":
        return ",".join(
            _tenants({who: " ".join(f"{key}={usd}" for key, usd in one.items()) for who, one in value.items()})
        )
    if name == "prices":
        return ", ".join(value)
    if name == "max_tokens_per_s":
        return ",".join(_tenants(value))
    if name == "limits":
        numbers = {tenant: " ".join(f"{limit}={most}" for limit, most in own.items()) for tenant, own in value.items()}
        return ",".join(_tenants(numbers))
    if name == "models":
        return json.dumps(value) if value else ""
    if isinstance(value, list):
        return ",".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def _tenants(values: dict[str, Any]) -> list[str]:
    """As they are written in the environment: what is for every tenant has no name before it."""
    return [f"{value}" if tenant == EVERY_TENANT else f"{tenant}:{value}" for tenant, value in values.items()]
