"""The tests' own look into Redis, past everything that is tested.

Hidden here: that redis-py 5 has one set of type hints for its two clients, so that each command of the blocking one is
said to return `Awaitable[Any] | Any`. A test that reads a key would have to deny the first half every time.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import redis

Store: TypeAlias = Any
"""A `redis.Redis`; Any for the reason above."""


def open_store(url: str, **options: Any) -> Store:
    """A blocking client of the server at `url`; a context manager, as redis-py's is."""
    return redis.Redis.from_url(url, **options)
