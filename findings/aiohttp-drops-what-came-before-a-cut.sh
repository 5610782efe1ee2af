#!/usr/bin/env bash
# Package: aiohttp 3.14.5 (PyPI); httpx 0.28.1 beside it.
# Behaviour: bytes that arrived while the reader was busy with those before them are dropped if the connection is cut in the
#   meantime: the next read raises at once. httpx hands them out first, and raises after them.
# For us: at a cut, what is left in the response's buffer is taken out by hand, or the last chunks of an answer are lost.
# Seen: of "one", "two" and a cut, aiohttp gives ['one'], then ClientPayloadError; httpx ['one', 'two'], then RemoteProtocolError
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check aiohttp==3.14.5 httpx==0.28.1
"$dir/venv/bin/python" - <<'PY'
import asyncio
import sys
from collections.abc import AsyncIterator

import aiohttp
import httpx

read, cut = asyncio.Event(), asyncio.Event()


async def provider(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
    await read.wait()
    writer.write(b"3\r\ntwo\r\n")
    writer.close()
    await writer.wait_closed()
    await asyncio.sleep(0.3)  # both have reached the client's side
    cut.set()


async def outcome(body: AsyncIterator[bytes]) -> str:
    got: list[str] = []
    read.clear(), cut.clear()
    try:
        async for data in body:
            got.append(data.decode())
            read.set()
            await cut.wait()
    except (aiohttp.ClientError, httpx.TransportError) as error:
        return f"{got}, then {type(error).__name__}"
    return f"{got}, then its end"


async def main() -> int:
    async with await asyncio.start_server(provider, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            dropped = await outcome(response.content.iter_any())
        async with httpx.AsyncClient() as client, client.stream("GET", url) as response:
            kept = await outcome(response.aiter_raw())
    print(f'of "one", "two" and a cut, aiohttp gives {dropped}; httpx {kept}')
    return not (dropped.startswith("['one'], then Client") and kept.startswith("['one', 'two'], then Remote"))


sys.exit(asyncio.run(main()))
PY
