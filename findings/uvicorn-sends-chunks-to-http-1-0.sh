#!/usr/bin/env bash
# Package: uvicorn 0.54.0 with httptools 0.9.0, and with h11 0.16.0 (PyPI).
# Behaviour: a client that asks in HTTP/1.0 gets a streamed response in chunks under httptools, which it does not know: it
#   takes their sizes for text. RFC 9112 section 6.1 forbids it. Under h11 the body ends with the connection.
# For us: a proxy in front, such as nginx, has to be told to ask its upstreams in HTTP/1.1; by itself it asks in 1.0.
# Seen: HTTP/1.0 client reads of "hello": httptools '5\r\nhello\r\n0\r\n\r\n', h11 'hello'
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check uvicorn==0.54.0 httptools==0.9.0 h11==0.16.0
cat >"$dir/hello.py" <<'PY'
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"hello", "more_body": True})
    await send({"type": "http.response.body"})
PY
cd "$dir"
venv/bin/python - <<'PY'
import socket
import sys
import threading
import time

import uvicorn


def read(parser: str) -> str:
    options = {"http": parser, "lifespan": "off", "log_level": "critical"}
    server = uvicorn.Server(uvicorn.Config("hello:app", port=0, **options))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    with socket.create_connection(server.servers[0].sockets[0].getsockname(), timeout=10) as client:
        client.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    server.should_exit = True
    thread.join()
    return answer.partition(b"\r\n\r\n")[2].decode()


got = read("httptools"), read("h11")
print('HTTP/1.0 client reads of "hello": httptools {!r}, h11 {!r}'.format(*got))
sys.exit(got != ("5\r\nhello\r\n0\r\n\r\n", "hello"))
PY
