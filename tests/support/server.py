"""Redis or Valkey servers of our own on loopback: of either kind, several at once, with TLS or without."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest
import redis
import trustme

from shared.cli.embedded import find_binary, tied_to_parent
from tests.harness.processes import free_port, wait_until
from tests.harness.store import Store

REDIS = "redis-server"
KINDS = ("valkey", "redis")
"""What `binary` knows."""


def binary(kind: str) -> str:
    """The program of `valkey`, the bundled one, or of `redis`, the machine's; skips the test where that is not installed."""
    if kind == "valkey":
        return str(find_binary())
    found = shutil.which(REDIS)
    if found is None:
        pytest.skip(f"{REDIS} is not installed")
    return found


@contextmanager
def hung(client: Store, how: str = "stopped") -> Iterator[None]:
    """The server of this client takes what it is told, and does it when this is over: it is `stopped`, or `paused`, where only
    writes wait, since CLIENT UNPAUSE would wait itself for the end of a pause of all commands."""
    if how == "paused":
        client.client_pause(60_000, all=False)
        try:
            yield
        finally:
            client.client_unpause()
        return
    pid = client.info("server")["process_id"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class Certificates:
    """An authority of our own, and what a server is to be told to use a certificate for `names`."""

    def __init__(self, directory: Path, *names: str) -> None:
        authority = trustme.CA()
        directory.mkdir(exist_ok=True)
        self.ca, self.cert, self.key = (str(directory / f"{name}.pem") for name in ("ca", "cert", "key"))
        issued = authority.issue_cert(*names)
        authority.cert_pem.write_to_path(self.ca)
        issued.cert_chain_pems[0].write_to_path(self.cert)
        issued.private_key_pem.write_to_path(self.key)

    def options(self, port: int, *, of_clients: str = "no") -> list[str]:
        """TLS on that port of a server; clients need a certificate of the same authority with `of_clients="yes"`."""
        files = ["--tls-cert-file", self.cert, "--tls-key-file", self.key, "--tls-ca-cert-file", self.ca]
        return ["--tls-port", str(port), *files, "--tls-auth-clients", of_clients]


class Server:
    """A context manager; `options` are the server's own, as on its command line, and win over these here.

    It keeps nothing on disk and has the default user only, unless they say otherwise.
    """

    def __init__(self, directory: Path, *options: str, kind: str = "valkey", port: int = 0) -> None:
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._directory, self._options, self._kind = directory, options, kind
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True)
        common = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._directory), "--save", ""]
        with (self._directory / "server.log").open("ab") as log:
            command = tied_to_parent([binary(self._kind), *common, *self._options])
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(self._listens, what=f"{self._kind} listens on {self.port}")
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def client(self, **options: Any) -> Store:
        """The connection ends with the last use of the client."""
        return redis.Redis(port=self.port, socket_timeout=60, **options)

    def _listens(self) -> bool:
        assert self._process is not None
        ended = self._process.poll()
        assert ended is None, f"{self._kind} ended:\n{(self._directory / 'server.log').read_text()[-1000:]}"
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.AuthenticationError:  # it is there, and wants a password
            return True
        except (redis.ConnectionError, redis.TimeoutError, redis.ResponseError):
            return False
