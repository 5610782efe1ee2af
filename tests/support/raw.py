"""A client that says what it is told to, byte for byte, before it listens."""

from __future__ import annotations

import json
import socket
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.support.wire import error_of


class Answered(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def check(self, status: int, code: str) -> None:
        """Of what is refused with the connection: the status, and OpenAI's shape."""
        assert self.status == status, self
        assert self.headers["content-type"] == "application/json"
        assert self.headers["connection"] == "close"
        assert self.headers["x-request-id"].startswith("req_")
        error = error_of(json.loads(self.body))
        assert (error["type"], error["code"]) == ("invalid_request_error", code)


class Raw:
    """One connection. `send`, then `answer`, as often as it is kept; `ended` once it is not."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self.socket = socket.create_connection((address.hostname or "", address.port or 0), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self, method: str = "GET") -> Answered:
        status = self._reader.readline()
        assert status.startswith(b"HTTP/1.1 "), status
        headers = {}
        while (line := self._reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode().rstrip("\r\n").partition(": ")
            headers[name] = value
        if method == "HEAD" or status.split()[1] == b"204":
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self._reader.readline(), 16):
                body += self._reader.read(size)
                self._reader.readline()
            self._reader.readline()
        elif "content-length" in headers:
            body = self._reader.read(int(headers["content-length"]))
        else:
            body = self.rest()
        return Answered(int(status.split()[1]), headers, body)

    def read(self, count: int) -> bytes:
        return self._reader.read(count)

    def rest(self) -> bytes:
        """Until the server closes."""
        return self._reader.read()

    def shut(self) -> None:
        """Has said all, and listens on (`nc -N`)."""
        self.socket.shutdown(socket.SHUT_WR)

    def ended(self) -> bool:
        return self._reader.read(1) == b""

    def close(self) -> None:
        self._reader.close()
        self.socket.close()
