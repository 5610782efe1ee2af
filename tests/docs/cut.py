"""A network that fails once: passes bytes on to a port, and breaks the first long response in the middle."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Self

_AFTER_BYTES = 3000


class CuttingProxy:
    """Listens on `url`. The first connection whose response gets that long is reset; `cut` counts those."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self.cut = 0
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._end(self._listener)
        for connection in self._open:
            self._end(connection)
        for thread in self._threads:
            thread.join()

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            server = socket.create_connection(("127.0.0.1", self._port))
            self._open += [client, server]
            self._start(self._copy, client, server, False)
            self._start(self._copy, server, client, True)

    def _copy(self, source: socket.socket, target: socket.socket, may_cut: bool) -> None:
        passed = 0
        try:
            while received := source.recv(512):
                passed += len(received)
                if may_cut and not self.cut and passed > _AFTER_BYTES:
                    self.cut += 1
                    target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
                target.sendall(received)
        except OSError:
            pass
        self._end(source)
        self._end(target)

    @staticmethod
    def _end(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()
