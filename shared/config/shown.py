"""Settings as `streamspool config` and GET /v1/settings show them: as they are written in the environment, without secrets."""

from __future__ import annotations

import json
import os
from typing import Any

from dotenv import dotenv_values

from shared.config.environ import FILE
from shared.config.redis_url import without_password
from shared.config.settings import Settings, variable
from shared.config.tenants import EVERY_TENANT


def listed(settings: Settings) -> list[dict[str, str]]:
    """`name`, `value` and `source` of each: the process's environment, `.env`, `streamspool.toml`, or the default. Of providers
    the names alone, since an address may tell more than it should."""
    places = (("environment", set(os.environ)), (".env", set(dotenv_values(".env"))))
    found = []
    for field in type(settings).model_fields:
        name, value = variable(field), getattr(settings, field)
        source = "default"
        if field in settings.model_fields_set:
            named = (place for place, names in places if {name, name + FILE} & names)
            source = next(named, "streamspool.toml")
        found.append(
            {"name": name, "value": ", ".join(value) if field == "providers" else shown(field, value), "source": source}
        )
    return found


def shown(name: str, value: Any) -> str:
    """A setting as it is written in the environment, without secrets."""
    if name in ("redis_url", "queue_url"):
        none = "(embedded Valkey)" if name == "redis_url" else ""
        return without_password(value.get_secret_value()) if value else none
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
