#!/usr/bin/env bash
# Package: aiohttp 3.14.5 (PyPI).
# Behaviour: after each piece of a body that was read, the connection is told to read on, and feeds its parser an empty piece,
#   although it had never stopped reading: a body in N pieces goes through the parser 2 N times.
# For us: a paced answer is nothing but small pieces. Where nothing was held, it is not told to read on.
# Seen: 50 pieces arrived and 50 empty ones were parsed beside them; reading was held 0 times
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check aiohttp==3.14.5
"$dir/venv/bin/python" - <<'PY'
import asyncio, sys
from functools import partial

import aiohttp
from aiohttp.client_proto import ResponseHandler

PIECES = 50
was_read, seen = asyncio.Event(), {"full": 0, "empty": 0, "held": 0}


class Counting(ResponseHandler):
    def data_received(self, data: bytes) -> None:
        seen["full" if data else "empty"] += 1
        super().data_received(data)

    def pause_reading(self) -> None:
        seen["held"] += 1
        super().pause_reading()


async def provider(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(PIECES):
        was_read.clear()
        writer.write(b"3\r\none\r\n")
        await was_read.wait()
    writer.close()


async def main() -> int:
    connector = aiohttp.TCPConnector()
    connector._factory = partial(Counting, loop=asyncio.get_running_loop())
    async with await asyncio.start_server(provider, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        async with aiohttp.ClientSession(connector=connector) as session, session.get(url) as response:
            seen.update(full=0, empty=0)
            for _ in range(PIECES):
                await response.content.readany()
                was_read.set()
            empty, held = seen["empty"], seen["held"]
    print(f"{PIECES} pieces arrived and {empty} empty ones were parsed beside them; reading was held {held} times")
    return (empty, held) != (PIECES, 0)


sys.exit(asyncio.run(main()))
PY
