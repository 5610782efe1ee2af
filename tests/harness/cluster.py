"""A cluster of our own on loopback: masters, and replicas of them if asked for.

Hidden here: how nodes become a cluster without the program that ships with the server: slots are given out, they meet, and it
is waited until all of them agree.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
from pathlib import Path
from typing import Any, Self

from shared.cli.embedded import find_binary, tied_to_parent
from shared.store.cluster.slots import SLOTS
from tests.harness.processes import free_port, wait_until
from tests.harness.store import Store, open_store

NODE_TIMEOUT_MS = 2000
_READY_S = 60


class Node:
    """One server of a cluster."""

    def __init__(self, directory: Path, number: int) -> None:
        self.directory = directory / f"node{number}"
        self.port, self.bus_port = free_port(), free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.directory.mkdir(exist_ok=True)
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "cluster-enabled": "yes",
            "cluster-port": self.bus_port,
            "cluster-node-timeout": NODE_TIMEOUT_MS,
            "cluster-require-full-coverage": "no",
            "cluster-replica-validity-factor": 0,
            "repl-diskless-sync-delay": 0,
            "appendonly": "yes",
            "save": "",
            "dir": self.directory,
        }
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(tied_to_parent([str(find_binary()), *words]), stdout=log, stderr=log)
        wait_until(self._answers, _READY_S, "a node answers")

    def _answers(self) -> bool:
        with contextlib.suppress(Exception):
            return bool(self.client().ping())
        return False

    def client(self) -> Store:
        return open_store(f"redis://127.0.0.1:{self.port}")

    def ask(self, *words: Any) -> Any:
        with self.client() as client:
            return client.execute_command(*words)

    @property
    def id(self) -> str:
        return str(self.ask("CLUSTER", "MYID").decode())

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        assert self.process is not None
        self.process.wait(15)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.send(signal.SIGCONT)
            self.process.terminate()
            self.process.wait(15)


class Cluster:
    """A context manager. The first `masters` of `nodes` have the slots, in order; the rest follow them one by one."""

    def __init__(self, directory: Path, *, masters: int = 3, replicas: int = 0) -> None:
        self.masters = masters
        self.nodes = [Node(directory, number) for number in range(masters + replicas)]
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:masters])
        self.url = f"redis+cluster://{hosts}"

    def __enter__(self) -> Self:
        try:
            for node in self.nodes:
                node.start()
            self._join()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.stop()

    def _join(self) -> None:
        edges = [number * SLOTS // self.masters for number in range(self.masters + 1)]
        for number, node in enumerate(self.nodes[: self.masters]):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            node.ask("CLUSTER", "ADDSLOTSRANGE", edges[number], edges[number + 1] - 1)
        first = self.nodes[0]
        for node in self.nodes[1:]:
            node.ask("CLUSTER", "MEET", "127.0.0.1", first.port, first.bus_port)
        wait_until(self._agrees, _READY_S, "the nodes know each other")
        for number, node in enumerate(self.nodes[self.masters :]):
            node.ask("CLUSTER", "REPLICATE", self.nodes[number % self.masters].id)
        wait_until(self._agrees, _READY_S, "the nodes agree")
        for node in self.nodes[self.masters :]:
            wait_until(lambda node=node: self._follows(node), _READY_S, "a replica follows")

    def _agrees(self) -> bool:
        for node in self.nodes:
            told = node.ask("CLUSTER", "INFO")
            told = told if isinstance(told, dict) else dict(line.split(":") for line in told.decode().split())
            wanted = {
                "cluster_state": "ok",
                "cluster_known_nodes": str(len(self.nodes)),
                "cluster_slots_ok": str(SLOTS),
            }
            if any(str(told[name]) != value for name, value in wanted.items()):
                return False
        return True

    @staticmethod
    def _follows(node: Node) -> bool:
        with node.client() as client:
            return bool(client.info("replication").get("master_link_status") == "up")
