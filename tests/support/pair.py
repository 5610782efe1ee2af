"""A master and its replica behind one address, as a managed service has them."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from tests.harness.processes import wait_until
from tests.harness.store import Store, replicate
from tests.support.proxy import Proxy
from tests.support.server import Server


class Pair:
    """Two servers behind one address: `fail_over` makes the other one the master, and the first its replica. What is
    connected stays connected where it is, as behind a managed service's name."""

    def __init__(self, directory: Path, kind: str) -> None:
        self.servers = [Server(directory / name, kind=kind) for name in ("a", "b")]

    def __enter__(self) -> Self:
        for server in self.servers:
            server.__enter__()
        self.a, self.b = (server.client() for server in self.servers)
        for client in (self.a, self.b):
            client.config_set("repl-diskless-sync-delay", 0)
        self.proxy = Proxy(("127.0.0.1", self.servers[0].port)).__enter__()
        self.url = f"redis://127.0.0.1:{self.proxy.port}/0"
        self._follow(self.b, 0)
        return self

    def __exit__(self, *_: object) -> None:
        self.proxy.__exit__()
        for client in (self.a, self.b):
            client.close()
        for server in self.servers:
            server.__exit__()

    def fail_over(self) -> None:
        """What the first had is at the other one before."""
        replicate(self.a)
        self.proxy.lead_to(("127.0.0.1", self.servers[1].port))
        self.b.replicaof("NO", "ONE")
        self.a.replicaof("127.0.0.1", self.servers[1].port)

    def heal(self) -> None:
        """As in the beginning."""
        wait_until(lambda: self.a.info("replication").get("master_link_status", "up") == "up", what="it has followed")
        self.a.replicaof("NO", "ONE")
        self._follow(self.b, 0)
        self.proxy.lead_to(("127.0.0.1", self.servers[0].port))

    def _follow(self, client: Store, master: int) -> None:
        client.replicaof("127.0.0.1", self.servers[master].port)
        wait_until(lambda: client.info("replication")["master_link_status"] == "up", what="it follows")
