"""What a key or a tenant may use: the names of the limits, and how they are written in a setting.

Hidden here: the form `requests_per_min=600 running=50`, for every tenant, and with `team-a:` in front, for one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Annotated

from pydantic import BeforeValidator

_PAIR = re.compile(r"([a-z_]+)=([1-9][0-9]{0,15})")


@dataclass(frozen=True, slots=True)
class Limits:
    """None: as much as is asked for."""

    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    running: int | None = None
    """Generations that have not ended, waiting or not."""
    waiting: int | None = None
    """Of them those that no worker has begun."""
    viewers: int | None = None
    """Streams that are watched at once."""
    stored_bytes: int | None = None
    """Large requests and answers in the file storage; a tenant's only."""
    file_bytes: int | None = None
    """Files; a tenant's only."""
    open_batches: int | None = None
    webhooks: int | None = None
    """Generations that have not ended and will call one."""
    body_bytes: int | None = None
    """Of one request."""


UNLIMITED = Limits()
NOTHING_SET: Mapping[str, int] = MappingProxyType({})
Told = Mapping[str, Mapping[str, int]]
"""What was set while the server runs, by tenant or `*`."""
LIMITS = tuple(field.name for field in fields(Limits))
OF_TENANTS = ("stored_bytes", "file_bytes")
"""Those that are no key's: what is stored is the tenant's."""


def told(limits: Limits) -> dict[str, int]:
    """Those that say something, by name."""
    return {name: number for name, number in asdict(limits).items() if number is not None}


def _parsed(value: object) -> object:
    """Raises ValueError."""
    if isinstance(value, str):
        pairs = [_PAIR.fullmatch(part) for part in value.split()]
        if not pairs or not all(pairs):
            raise ValueError(f"must look like `requests_per_min=600 running=50`; there are {', '.join(LIMITS)}")
        value = {pair[1]: int(pair[2]) for pair in pairs if pair}
    if isinstance(value, Mapping):
        for name, number in value.items():
            if name not in LIMITS or not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise ValueError(f"has whole numbers from 1 for {', '.join(LIMITS)}")
    return value


LimitNumbers = Annotated[dict[str, int], BeforeValidator(_parsed)]
"""Numbers by the names of `Limits`."""
