"""A provider that misbehaves as it is told: another answer on each call, and every way in which a connection can end.

Where `upstream.py` plays one script for ever, a plan here says what the first, second, … call gets. It runs in a thread
of its own, over real HTTP/1.1 on loopback; a test asks for the model `scripted/NAME`.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from tests.support.upstream import Pause

End = Literal["clean", "cut", "eof", "rst", "hang"]
"""clean: as HTTP wants it. cut: chunked, without its last chunk. eof: no length at all. hang: open until we hang up."""


@dataclass
class Answer:
    """One response. Of `parts`, bytes are one write each, a number is a pause in seconds, a Pause a barrier."""

    parts: Iterable[bytes | float | Pause] = ()
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
class Plan:
    """What one model answers, call by call, and what happened. The last answer is repeated."""

    answer: Callable[[int], Answer]
    calls: list[dict[str, Any]] = field(default_factory=list)
    called_at: list[float] = field(default_factory=list)
    authorization: list[str | None] = field(default_factory=list)
    live: int = 0
    hung_up: int = 0


class FaultyProvider:
    """The server: a context manager. `plan` registers what a model answers."""

    def __init__(self) -> None:
        self._plans: dict[str, Plan] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.port = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def live(self) -> int:
        return sum(plan.live for plan in list(self._plans.values()))

    def plan(self, name: str, *answers: Answer, by: Callable[[int], Answer] | None = None) -> Plan:
        """`by` makes the answer of call 1, 2, …, where a list will not do."""
        self._plans[name] = Plan(by or (lambda call: answers[min(call, len(answers)) - 1]))
        return self._plans[name]

    def forget(self, name: str) -> None:
        del self._plans[name]

    def __enter__(self) -> Self:
        self._thread.start()
        starting = asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result(10)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        async def stop() -> None:
            self._server.close()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            length = re.search(r"content-length:\s*(\d+)", head, re.I)
            authorization = re.search(r"authorization:\s*(.+)\r", head, re.I)
            body = json.loads(await reader.readexactly(int(length[1])) if length else b"{}")
            plan = self._plans.get(body.get("model", "")) or Plan(lambda _: refusal(404, "model_not_found"))
            plan.calls.append(body)
            plan.called_at.append(time.monotonic())
            plan.authorization.append(authorization[1] if authorization else None)
            plan.live += 1
            playing = asyncio.ensure_future(self._play(plan.answer(len(plan.calls)), writer))
            leaving = asyncio.ensure_future(reader.read(1))
            try:
                await asyncio.wait({playing, leaving}, return_when=asyncio.FIRST_COMPLETED)
                plan.hung_up += not playing.done()
            finally:
                playing.cancel()
                leaving.cancel()
                await asyncio.gather(playing, leaving, return_exceptions=True)
                plan.live -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _play(self, answer: Answer, writer: asyncio.StreamWriter) -> None:
        chunked = answer.end != "eof"
        headers = {**answer.headers, "connection": "close", **({"transfer-encoding": "chunked"} if chunked else {})}
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
        elif answer.end == "clean":
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        elif answer.end == "rst":
            await asyncio.sleep(0.05)  # a reset would overtake what is on its way
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
