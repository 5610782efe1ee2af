"""A body of this API, read without what is large of it, so that a request of 50 MB is worked with as some kilobytes.

Hidden here: in which fields a mark may stand for what was taken out (`shared.log.blobs`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from api.deps import read
from api.services import Services
from shared.lib import json
from shared.log.blobs import Cut

_MARKED = ("input", "items")
"""The fields in which pictures and files stand. Of the others, some are shown again as they came, so they have no marks."""


async def read_apart(
    services: Services, body: bytes | bytearray, make: Callable[[Any], Any] = lambda value: value
) -> tuple[Any, Cut]:
    """What `make` makes of a body, with marks for what is large of its items; and the cut by which a body made of it is stored.
    Raises BadRequest."""
    cut = await services.blobs.cut(body)
    given = await read(services, cut.text, make)
    if cut.holes and isinstance(given, dict):
        others = json.dumps({field: value for field, value in given.items() if field not in _MARKED})
        if services.blobs.marks.are_in(others):
            given |= json.loads(services.blobs.marks.put_back(others, cut))
    return given, cut
