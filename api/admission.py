"""Whether a request is let in: the one place where a limit may refuse it before anything of it exists.

`admit` is called inside the transaction that creates a generation (shared/generations/gate.py), whichever surface it came
through. There are no limits yet: all are let in, and no command is sent. A limit will look here at what `caller.limits`
allow, and raise RateLimited (429), whose `retry_after_s` becomes `Retry-After`.
"""

from __future__ import annotations

from typing import Any

from shared.chat.request import ChatRequest
from shared.generations.caller import Caller
from shared.generations.gate import Charge


async def admit(caller: Caller, request: ChatRequest, pipe: Any) -> Charge | None:
    """Lets the request in, or raises RateLimited.

    `pipe` may be made to watch keys and asked for their values. What is returned is called with it once it is in MULTI:
    the commands it adds take effect with the generation, or not at all. After a watched key has changed, all of it is
    done again.
    """
    return None
