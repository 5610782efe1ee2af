"""A master, a replica and a sentinel of our own on loopback: what a fail-over needs."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import Self

import redis

from shared.embedded import find_binary, tied_to_parent
from tests.support.stack import free_port, wait_until

MASTER = "mymaster"
DOWN_AFTER_MS = 500


class Sentinels:
    """A context manager. `url` is for Streamspool; `kill_master` makes the sentinel promote the replica."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ports = [free_port() for _ in range(3)]
        self._processes: list[subprocess.Popen[bytes]] = []
        self.url = f"redis+sentinel://127.0.0.1:{self._ports[2]}/{MASTER}/0"

    def __enter__(self) -> Self:
        master, replica, sentinel = self._ports
        try:
            self._start(master, ["--repl-diskless-sync-delay", "0"])
            self._start(replica, ["--replicaof", "127.0.0.1", str(master)])
            wait_until(lambda: self.client(1).info("replication")["master_link_status"] == "up", what="a replica")
            conf = self._directory / "sentinel.conf"
            conf.write_text(
                f"port {sentinel}\nbind 127.0.0.1\ndir {self._directory}\nsentinel monitor {MASTER} 127.0.0.1 {master} 1\n"
                f"sentinel down-after-milliseconds {MASTER} {DOWN_AFTER_MS}\nsentinel failover-timeout {MASTER} 3000\n"
            )
            self._run([str(conf), "--sentinel"], "sentinel", sentinel)
            wait_until(lambda: self.client(2).execute_command("SENTINEL", "REPLICAS", MASTER), what="it is seen")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(15)

    def client(self, number: int) -> redis.Redis:
        """0: the first master, 1: its replica, 2: the sentinel. The connection ends with the last use of the client."""
        return redis.Redis(port=self._ports[number], single_connection_client=False, socket_timeout=5)

    def kill_master(self) -> None:
        self._processes[0].kill()
        self._processes[0].wait()

    def fail_over(self) -> None:
        """The sentinel changes roles while both servers live: the old master becomes a replica, read-only."""
        wait_until(self._told, 20, "the sentinel obeys")
        wait_until(self._promoted, 20, "a new master")

    def _promoted(self) -> bool:
        with contextlib.suppress(redis.ConnectionError):  # with the roles, a sentinel cuts all connections
            return bool(self.client(1).info("replication")["role"] == "master")
        return False

    def _told(self) -> bool:
        with contextlib.suppress(redis.ResponseError):
            return bool(self.client(2).execute_command("SENTINEL", "FAILOVER", MASTER))
        return False

    def _start(self, port: int, options: list[str]) -> None:
        directory = self._directory / str(port)
        directory.mkdir()
        common = [
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(directory),
            "--appendonly",
            "yes",
            "--save",
            "",
        ]
        self._run([*common, *options], str(port), port)

    def _run(self, arguments: list[str], name: str, port: int) -> None:
        with (self._directory / f"{name}.log").open("ab") as log:
            command = tied_to_parent([str(find_binary()), *arguments])
            self._processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

        def answers() -> bool:
            with contextlib.suppress(redis.ConnectionError), redis.Redis(port=port) as client:
                return bool(client.ping())
            return False

        wait_until(answers, what=f"{name} answers")
