"""A master, a replica and a sentinel of our own on loopback: what a fail-over needs. With passwords and TLS, if asked for."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import redis

from shared.cli.embedded import tied_to_parent
from tests.harness.processes import free_port, wait_until
from tests.harness.store import Store, replicate
from tests.support.server import Certificates, binary

MASTER = "mymaster"
DOWN_AFTER_MS = 2000
"""A master that is only slow, on a busy machine, is none that is down."""
PASSWORD, SENTINEL_USER, SENTINEL_PASSWORD = "master/pass word", "watcher", "sentinel+pass&word"


class Sentinels:
    """A context manager. `url` is for Streamspool; `kill_master` makes the sentinel promote the replica.

    With `passwords` the servers have one, and the sentinel a user and another; with `tls` they all speak nothing else.
    """

    def __init__(self, directory: Path, *, passwords: bool = False, tls: Certificates | None = None) -> None:
        self._directory, self._passwords, self._tls = directory, passwords, tls
        self._ports = [free_port() for _ in range(3)]
        self._processes: list[subprocess.Popen[bytes]] = []
        scheme = "rediss+sentinel" if tls else "redis+sentinel"
        login = f":{quote(PASSWORD, safe='')}@" if passwords else ""
        of_sentinels = (
            f"sentinel_username={SENTINEL_USER}&sentinel_password={quote(SENTINEL_PASSWORD)}" if passwords else ""
        )
        trusted = f"ssl_ca_certs={tls.ca}" if tls else ""
        options = "&".join(filter(None, (of_sentinels, trusted)))
        self.url = f"{scheme}://{login}127.0.0.1:{self._ports[2]}/{MASTER}/0" + (f"?{options}" if options else "")

    def __enter__(self) -> Self:
        master, replica, sentinel = self._ports
        try:
            self._start(master, ["--repl-diskless-sync-delay", "0"])
            self._start(replica, ["--replicaof", "127.0.0.1", str(master)])
            wait_until(lambda: self.client(1).info("replication")["master_link_status"] == "up", what="a replica")
            conf = self._directory / "sentinel.conf"
            conf.write_text("\n".join(self._lines(master, sentinel)) + "\n")
            self._run([str(conf), "--sentinel"], "sentinel", 2)
            wait_until(lambda: self.client(2).execute_command("SENTINEL", "REPLICAS", MASTER), what="it is seen")
        except BaseException:
            self.__exit__()
            raise
        return self

    def _lines(self, master: int, sentinel: int) -> list[str]:
        lines = ["bind 127.0.0.1", f"dir {self._directory}", f"sentinel monitor {MASTER} 127.0.0.1 {master} 1"]
        lines += [
            f"sentinel down-after-milliseconds {MASTER} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {MASTER} 3000",
        ]
        if self._passwords:
            lines += [
                f'sentinel auth-pass {MASTER} "{PASSWORD}"',
                f"user {SENTINEL_USER} on >{SENTINEL_PASSWORD} +@all ~* &*",
                "user default off",
            ]
        if self._tls:
            of_tls = self._tls.options(sentinel)
            lines += ["port 0", "tls-replication yes"]
            lines += [f"{name[2:]} {value}" for name, value in zip(of_tls[::2], of_tls[1::2], strict=True)]
        else:
            lines.append(f"port {sentinel}")
        return lines

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(60)

    def client(self, number: int) -> Store:
        """0: the first master, 1: its replica, 2: the sentinel. The connection ends with the last use of the client."""
        options: dict[str, Any] = {}
        if self._passwords and number == 2:
            options = {"username": SENTINEL_USER, "password": SENTINEL_PASSWORD}
        elif self._passwords:
            options = {"password": PASSWORD}
        if self._tls:
            options |= {"ssl": True, "ssl_ca_certs": self._tls.ca}
        return redis.Redis(host="127.0.0.1", port=self._ports[number], socket_timeout=60, **options)

    def kill_master(self) -> None:
        self._processes[0].kill()
        self._processes[0].wait()

    def replicated(self) -> None:
        """What the master was told so far is at its replica."""
        with self.client(0) as client:
            replicate(client)

    def fail_over(self) -> None:
        """The sentinel changes roles while both servers live: the old master becomes a replica, read-only."""
        wait_until(self._told, what="the sentinel obeys")
        wait_until(self._promoted, what="a new master")

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
        common = ["--bind", "127.0.0.1", "--dir", str(directory), "--appendonly", "yes", "--save", ""]
        if self._passwords:
            common += ["--requirepass", PASSWORD, "--masterauth", PASSWORD]
        if self._tls:
            common += ["--port", "0", "--tls-replication", "yes", *self._tls.options(port)]
        else:
            common += ["--port", str(port)]
        self._run([*common, *options], str(port), self._ports.index(port))

    def _run(self, arguments: list[str], name: str, number: int) -> None:
        with (self._directory / f"{name}.log").open("ab") as log:
            command = tied_to_parent([binary("redis" if self._tls else "valkey"), *arguments])
            self._processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

        def answers() -> bool:
            with contextlib.suppress(redis.ConnectionError), self.client(number) as client:
                return bool(client.ping())
            return False

        wait_until(answers, what=f"{name} answers")
