"""A cluster of our own, here or on another host, of Valkey or Redis: masters, and if asked for replicas, TLS, a poor user.

Hidden here: how nodes become a cluster without the program that ships with the server: slots are given out, they meet, and it
is waited until all of them agree.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from shared.cli.embedded import tied_to_parent
from shared.store.cluster.slots import SLOTS
from tests.harness.processes import free_port, wait_until
from tests.harness.store import Store, open_store
from tests.support.server import Certificates, binary

NODE_TIMEOUT_MS = 5000
"""A third of what is shipped, and long enough for a node that is only slow, on a busy machine, to be no dead one."""
USER, PASSWORD = "spool", "a/pass word"
RULES = "on >{password} ~streamspool{{* &streamspool{{control}}:* &__redis__:invalidate +@all -@admin -@dangerous +info"
"""What a user of ours may, and no more: the last word is for what the server may forget."""
_READY_S = 60
_TRIES = 3


class Node:
    """One server of a cluster."""

    def __init__(
        self,
        directory: Path,
        number: int,
        address: str,
        within: Sequence[str],
        *,
        kind: str = "valkey",
        tls: Certificates | None = None,
        user: bool = False,
        timeout_ms: int = NODE_TIMEOUT_MS,
    ) -> None:
        self._address, self._within = address, within
        self._kind, self._tls, self._user, self._timeout_ms = kind, tls, user, timeout_ms
        self.directory = directory / f"node{number}"
        self.port = self.bus_port = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """At new ports the first time, and at others where somebody else was quicker with one of them; then at the same."""
        again = bool(self.port)
        self.directory.mkdir(exist_ok=True)
        for _ in range(_TRIES):
            if not again:
                self.port, self.bus_port = free_port(), free_port()
            self._launch()
            wait_until(lambda: not self.is_running() or self._answers(), _READY_S, "a node answers")
            if self.is_running() or again:
                break
        assert self.is_running(), (self.directory / "log").read_text()[-2000:]

    def _launch(self) -> None:
        options: dict[str, Any] = {
            "port": 0 if self._tls else self.port,
            "bind": self._address,
            "bind-source-addr": self._address,  # by which the others know it
            "protected-mode": "no",
            "cluster-enabled": "yes",
            "cluster-port": self.bus_port,
            "cluster-node-timeout": self._timeout_ms,
            "cluster-require-full-coverage": "no",
            "cluster-replica-validity-factor": 0,
            "repl-diskless-sync-delay": 0,
            "appendonly": "yes",
            "save": "",
            "dir": self.directory,
        }
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        if self._tls:
            words += [*self._tls.options(self.port), "--tls-cluster", "yes", "--tls-replication", "yes"]
        if self._user:
            words += ["--user", USER, *(rule.format(password=PASSWORD) for rule in RULES.split())]
        with (self.directory / "log").open("ab") as log:
            command = tied_to_parent([*self._within, binary(self._kind), *words])
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def _answers(self) -> bool:
        with contextlib.suppress(Exception):
            return bool(self.client().ping())
        return False

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def client(self) -> Store:
        """Of the default user, who may all."""
        if self._tls:
            return open_store(f"rediss://{self._address}:{self.port}?ssl_ca_certs={self._tls.ca}")
        return open_store(f"redis://{self._address}:{self.port}")

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
        self.process.wait(60)

    def pause(self) -> None:
        self.send(signal.SIGSTOP)

    def resume(self) -> None:
        self.send(signal.SIGCONT)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.send(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Cluster:
    """A context manager. The first `masters` of `nodes` have the slots, in order; the rest follow them one by one."""

    def __init__(
        self,
        directory: Path,
        *,
        masters: int = 3,
        replicas: int = 0,
        address: str = "127.0.0.1",
        within: Sequence[str] = (),
        kind: str = "valkey",
        tls: Certificates | None = None,
        user: bool = False,
        timeout_ms: int = NODE_TIMEOUT_MS,
    ) -> None:
        """`address` and `within` are of the host that all of it is on, as those of a Stack. With `user`, clients are USER, and
        may what RULES say."""
        self.masters, self._address = masters, address
        self._tls, self._user = tls, user

        def node(number: int) -> Node:
            return Node(directory, number, address, within, kind=kind, tls=tls, user=user, timeout_ms=timeout_ms)

        self._node = node
        self.nodes = [node(number) for number in range(masters + replicas)]

    @property
    def url(self) -> str:
        login = f"{USER}:{quote(PASSWORD, safe='')}@" if self._user else ""
        hosts = ",".join(f"{self._address}:{node.port}" for node in self.nodes[: self.masters])
        if self._tls is None:
            return f"redis+cluster://{login}{hosts}"
        return f"rediss+cluster://{login}{hosts}?ssl_ca_certs={self._tls.ca}"

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
            node.ask("CLUSTER", "MEET", self._address, first.port, first.bus_port)
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

    def add(self) -> Node:
        """One more, which knows the others and has no slots yet."""
        node, first = self._node(len(self.nodes)), self.nodes[0]
        node.start()
        self.nodes.append(node)
        node.ask("CLUSTER", "MEET", self._address, first.port, first.bus_port)
        wait_until(self._agrees, _READY_S, "the others know the new one")
        return node

    @staticmethod
    def cut_off(node: Node) -> None:
        """A replica gets nothing more from its master, and does not know why."""
        with node.client() as client:
            client.config_set("masteruser", "nobody")
            client.config_set("masterauth", "nothing")
            client.client_kill_filter(_type="master")
            wait_until(
                lambda: client.info("replication")["master_link_status"] == "down", _READY_S, "the replica is cut off"
            )

    @staticmethod
    def _follows(node: Node) -> bool:
        with node.client() as client:
            return bool(client.info("replication").get("master_link_status") == "up")

    # ---- slots

    def owner(self, slot: int) -> Node:
        """The master that has it, as any node that runs says."""
        for node in self.nodes:
            if node.is_running():
                for first, last, master, *_ in node.ask("CLUSTER", "SLOTS"):
                    if first <= slot <= last:
                        return next(one for one in self.nodes if one.port == master[1])
        raise AssertionError(f"nobody has slot {slot}")

    def begin_move(self, slot: int, target: Node) -> Node:
        """The slot is on its way, and none of its keys yet. Returns where it is."""
        source = self.owner(slot)
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        return source

    def move_keys(self, slot: int, source: Node, target: Node, most: int = 100_000) -> int:
        """Some of its keys are there now. Returns how many."""
        names = source.ask("CLUSTER", "GETKEYSINSLOT", slot, most)
        if names:
            source.ask("MIGRATE", self._address, target.port, "", 0, 60_000, "KEYS", *names)
        return len(names)

    def end_move(self, slot: int, source: Node, target: Node) -> None:
        """All of it is there."""
        while self.move_keys(slot, source, target):
            pass
        for node in (target, source, *(one for one in self.masters_now() if one not in (target, source))):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)  # which replicas do not take

    def move(self, slot: int, target: Node) -> None:
        """The classic move of a slot, key by key."""
        source = self.begin_move(slot, target)
        self.end_move(slot, source, target)

    def move_at_once(self, source: Node, target: Node) -> None:
        """All slots of a node, as Valkey 9 moves them."""
        ranges = [
            (first, last) for first, last, master, *_ in source.ask("CLUSTER", "SLOTS") if master[1] == source.port
        ]
        self.move_ranges(source, target, ranges)

    def move_ranges(self, source: Node, target: Node, ranges: Sequence[tuple[int, int]]) -> None:
        """The same of some of them, `(first, last)`."""
        words = [word for first, last in ranges for word in ("SLOTSRANGE", first, last, "NODE", target.id)]
        source.ask("CLUSTER", "MIGRATESLOTS", *words)
        for first, _ in ranges:
            wait_until(lambda first=first: self.owner(first) is target, _READY_S, "slots are moved")

    def masters_now(self) -> list[Node]:
        return [node for node in self.nodes if node.is_running() and b"master" in node.ask("ROLE")[:1]]
