#!/usr/bin/env bash
# Package: Linux 6.18 (any since 3.9 without net.ipv4.tcp_migrate_req=1), Python's standard library.
# Behaviour: two listeners of one port by SO_REUSEPORT. What the kernel has connected for one of them, and it has not accepted, is
#   reset when that one is closed, while the other would have taken it. With one listener that both have, nothing is lost.
# For us: `up --apis N` hands one listening socket down to all its processes (docs/decisions/0020).
# Seen: of 200 connections that waited for two listeners, 96 were reset with the first; of 200 that waited for one socket in two hands, 0
set -euo pipefail
python3 - <<'PY'
import os
import socket
import sys

COUNT = 200


def listener(port: int = 0) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(("127.0.0.1", port))
    made.listen(COUNT)
    return made


def lost(first: socket.socket, second: socket.socket) -> int:
    """Connections that are not answered by the second when the first is closed."""
    clients = [socket.create_connection(first.getsockname()) for _ in range(COUNT)]
    for client in clients:
        client.sendall(b"?")
        client.settimeout(10)
    first.close()
    second.settimeout(0.5)
    try:
        while True:
            taken, _ = second.accept()
            taken.sendall(b"!")
            taken.close()
    except TimeoutError:
        pass
    return sum(not answered(client) for client in clients)


def answered(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b"!"
    except ConnectionError:
        return False


one = listener()
apart = lost(one, listener(one.getsockname()[1]))
one = listener()
together = lost(one, socket.socket(fileno=os.dup(one.fileno())))
print(
    f"of {COUNT} connections that waited for two listeners, {apart} were reset with the first; "
    f"of {COUNT} that waited for one socket in two hands, {together}"
)
sys.exit(not (COUNT / 4 < apart < COUNT * 3 / 4 and together == 0))
PY
