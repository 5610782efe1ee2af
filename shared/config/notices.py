"""What stands in the settings and does nothing, or not what it seems to: told at the start, by `config` and by `doctor`.

Hidden here: which names there are, what a name that is none was probably meant to be, and which STREAMSPOOL_… variables are
not meant for us. Nothing of this stops a start: what can work, works. No line shows a value.
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from shared.config.environ import FILE, environment, is_service_link
from shared.config.settings import DEFAULT_CONFIG, PLAIN, Settings, variable
from shared.config.tenants import KEY_CHARACTERS, is_weak
from shared.lib.telemetry import get_logger
from shared.lib.words import did_you_mean

logger = get_logger(__name__)

SILENT = "STREAMSPOOL_SILENT"
"""Set by a supervisor for those of its children that would only say again what another one says."""

_OURS = "STREAMSPOOL_"
_OTHERS = (
    "STREAMSPOOL_CONFIG",
    "STREAMSPOOL_URL",
    "STREAMSPOOL_API_KEY",
    "STREAMSPOOL_LISTEN_FD",
    "STREAMSPOOL_READY_FD",
    SILENT,
)
"""Variables of ours that are no settings."""


def notices(settings: Settings) -> list[str]:
    """A line for each, ready to be shown; none where all is well. Raises OSError, ValueError for a toml that was unreadable."""
    return [*unknown_variables(environment(), settings), *unknown_names(_toml())]


def say_notices(lines: list[str]) -> None:
    """One line of the log for each, unless another process of the same start says them."""
    if not os.environ.get(SILENT):
        for line in lines:
            logger.warning("settings", notice=line)


def unknown_variables(variables: Mapping[str, str], settings: Settings) -> Iterator[str]:
    """STREAMSPOOL_… in the environment or `.env` that no part of Streamspool reads."""
    known = {variable(name) for name in Settings.model_fields}
    known |= {f"{_OURS}{name}" for name in known if not name.startswith(_OURS)}  # understood as well, and told nowhere
    known |= {f"{name}{FILE}" for name in known if name not in PLAIN}
    known |= {name for other in _OTHERS for name in (other, other + FILE)}
    for table in settings.providers.values():
        if table.api_key_env:
            known |= {table.api_key_env, table.api_key_env + FILE}
    plain = {name.removeprefix(_OURS): name for name in sorted(known, reverse=True)}
    for name in sorted(variables):
        upper = name.upper()
        if upper.startswith(_OURS) and upper not in known and not is_service_link(upper, os.environ.get(name)):
            meant = did_you_mean(upper.removeprefix(_OURS), plain)
            yield f"{name} is no setting and does nothing{meant}"


def unknown_names(table: Mapping[str, object]) -> Iterator[str]:
    """Names at the top of streamspool.toml that are no settings. Inside of [providers.NAME] they are refused."""
    known = set(Settings.model_fields)
    # Those with everyone's name for a variable may be called so here as well.
    known |= {variable(name) for name in known if not variable(name).startswith(_OURS)}
    for name in table:
        if name not in known:
            meant = did_you_mean(
                name.casefold().removeprefix(_OURS.casefold()), known
            )  # a variable's name is none here
            yield f"streamspool.toml: {name!r} is no setting and does nothing{meant}"


def _toml() -> dict[str, object]:
    path = Path(os.environ.get("STREAMSPOOL_CONFIG") or DEFAULT_CONFIG)
    return tomllib.loads(path.read_text("utf-8")) if path.is_file() else {}


def weak_keys(settings: Settings) -> str:
    """Why a server may not start with its keys; empty: it may. On a loopback address, where only this machine reaches it, a
    short key stays good: the servers that have one are those of developers and tests."""
    if _is_loopback(settings.host):
        return ""
    return "\n".join(
        f"STREAMSPOOL_API_KEYS: a key of tenant {tenant} can be guessed, and {settings.host} can be reached from other "
        f"machines: it has fewer than {KEY_CHARACTERS} characters, or few different ones. Make one with `openssl rand -hex 32`."
        for tenant, keys in settings.api_keys.items()
        if any(map(is_weak, keys))
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
