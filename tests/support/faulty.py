"""A provider that misbehaves as it is told: another answer on each call, and every way in which a connection can end.

Where `upstream.py` plays one script for ever, a plan here says what the first, second, … call gets. It runs in a thread
of its own, over real HTTP/1.1 on loopback; a test asks for the model `scripted/NAME`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from tests.support.loopback import ModelServer, Played
from tests.support.upstream import Part, Pause

End = Literal["clean", "silent", "cut", "eof", "rst", "hang"]
"""clean: as HTTP wants it. silent: whole, and the connection is closed although nothing said that it would be. cut: chunked,
without its last chunk. eof: no length at all. hang: open until we hang up."""


@dataclass
class Answer:
    """One response. Of `parts`, bytes are one write each, a number is a pause in seconds, a Pause a barrier."""

    parts: Iterable[Part] = ()
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "text/event-stream"})
    end: End = "clean"


def refusal(status: int, code: str = "broken", **headers: str) -> Answer:
    """An error as OpenAI sends it."""
    body = json.dumps({"error": {"message": f"refused with {status}", "type": code, "param": None, "code": code}})
    return Answer([body.encode()], status, {"content-type": "application/json", **headers})


RESET = Answer(end="rst", status=0)
"""The connection is reset before a byte of a response."""


@dataclass
class Plan(Played):
    """What one model answers, call by call, and what happened. The last answer is repeated."""

    answer: Callable[[int], Answer]

    @property
    def authorization(self) -> list[str | None]:
        return [headers.get("authorization") for headers in self.request_headers]


class FaultyProvider(ModelServer[Plan]):
    """The server: a context manager. `plan` registers what a model answers."""

    def plan(self, name: str, *answers: Answer, by: Callable[[int], Answer] | None = None) -> Plan:
        """`by` makes the answer of call 1, 2, …, where a list will not do."""
        self.models[name] = Plan(by or (lambda call: answers[min(call, len(answers)) - 1]))
        return self.models[name]

    def forget(self, name: str) -> None:
        del self.models[name]

    def unknown(self) -> Plan:
        return Plan(lambda _: refusal(404, "model_not_found"))

    async def play(self, played: Plan, call: int, writer: asyncio.StreamWriter) -> None:
        answer = played.answer(call)
        chunked = answer.end != "eof"
        headers = {**answer.headers, **({"transfer-encoding": "chunked"} if chunked else {})}
        headers |= {} if answer.end == "silent" else {"connection": "close"}
        lines = [f"HTTP/1.1 {answer.status} X", *(f"{name}: {value}" for name, value in headers.items())]
        if answer.status:
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        for part in answer.parts:
            await writer.drain()
            if isinstance(part, bytes):
                writer.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
            elif isinstance(part, Pause):
                await part.passed()
            else:
                await asyncio.sleep(part)
        await writer.drain()
        if answer.end == "hang":
            await asyncio.Event().wait()
        elif answer.end in ("clean", "silent"):
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        elif answer.end == "rst":
            await asyncio.sleep(0.05)  # a reset would overtake what is on its way
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
