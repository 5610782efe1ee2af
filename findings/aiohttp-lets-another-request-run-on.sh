#!/usr/bin/env bash
# Package: aiohttp 3.14.5 (PyPI).
# Behaviour: a response that has arrived gives its connection back before it is read. If the next request gets it, reading the
#   first response resumes the second one's connection as well: a body that nobody reads goes on growing in memory, past the
#   limit at which it had stopped. A handler is told of it by data_received(b"").
# For us: b"" is no word of a provider, or a request on a dead connection counts as begun and is not made again; and the
#   limit of what is read ahead holds only where answers are read to their end.
# Seen: read_bufsize 256 KiB: 786 kB held of the second response, 4.4 MB after 15 reads of the first one
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check aiohttp==3.14.5
"$dir/venv/bin/python" - <<'PY'
import asyncio
import sys

import aiohttp

async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        for size in (300_000, 50_000_000):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            for _ in range(size // 100_000):
                writer.write(bytes(100_000))
                await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        writer.close()


async def held(response: aiohttp.ClientResponse) -> int:
    """What has come of the body, once no more comes."""
    seen = -1
    while response.content.total_bytes != seen:
        seen = response.content.total_bytes
        await asyncio.sleep(0.5)
    return seen


async def main() -> int:
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        one = aiohttp.TCPConnector(limit=1)
        async with aiohttp.ClientSession(connector=one, read_bufsize=2**18) as session:
            first = await session.get(url)
            await held(first)
            second = await session.get(url)
            before = await held(second)
            async for _ in first.content.iter_chunked(20_000):
                await asyncio.sleep(0.02)
            after = await held(second)
    print(f"held of a body that nobody reads: {before:,} bytes, and {after:,} after another one was read")
    return not before < 1_000_000 < 2 * before < after


sys.exit(asyncio.run(main()))
PY
