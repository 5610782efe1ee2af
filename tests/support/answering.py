"""A bucket that gives one answer to everything: what it refuses with is the test's to choose."""

from __future__ import annotations

import asyncio
import re
from typing import Self

from tests.harness.loopback import stop_listening


class Answering:
    """A context manager. Listens on loopback; `url` is what `AWS_ENDPOINT_URL` is set to."""

    def __init__(self, status: int, body: str = "", *headers: str) -> None:
        lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", "connection: close", *headers]
        self._answer = ("\r\n".join(lines) + "\r\n\r\n" + body).encode()
        self.asked = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await stop_listening(self._server)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.asked += 1
            if size := re.search(rb"(?i)\r\ncontent-length: *(\d+)", head):
                await reader.readexactly(int(size[1]))  # of what is left unread when it is closed, a reset is made
            writer.write(self._answer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
