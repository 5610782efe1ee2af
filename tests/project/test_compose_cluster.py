"""The nodes of docker-compose.yml's cluster and what makes them one, run as they stand but for where things are: each node has
an address of loopback, as a container has one of Docker's."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import redis

from shared.cli.embedded import find_binary, tied_to_parent
from tests.harness.processes import wait_until
from tests.harness.store import Store
from tests.project.test_compose import load

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have one loopback address")
NODES = (1, 2, 3)
URL = "redis+cluster://:5ecret@cluster-1:6379,cluster-2:6379,cluster-3:6379"
NAMES = """#!/bin/sh
# What Docker's DNS says
[ "$1" = hosts ] && echo "$(cat "$0.$2") $2"
"""
CLI = """#!/bin/sh
# The distribution's, to the address that a name stands for
host=$(cat "{names}.$2"); shift 2
exec {program} -h "$host" "$@"
"""


class Place:
    """Where the containers' names lead, and what is on their volumes."""

    def __init__(self, directory: Path) -> None:
        program = shutil.which("redis-cli") or shutil.which("valkey-cli")
        if program is None:
            pytest.skip("redis-cli is not installed")
        self.directory, self.port = directory, _port()
        self.bin = directory / "bin"
        self.bin.mkdir()
        names = self.bin / "getent"
        for path, text in ((names, NAMES), (self.bin / "valkey-cli", CLI.format(names=names, program=program))):
            path.write_text(text)
            path.chmod(0o755)
        (directory / "redis_url").write_text(f"{URL}\n")

    def run(self, service: str, server: str = "") -> subprocess.Popen[bytes]:
        """A container's command, with these options more of its `server`."""
        shell, option, script = load()["services"][service]["command"]
        script = script.replace("/run/secrets", str(self.directory)).replace("6379", str(self.port))
        script = script.replace("valkey-server -", f"valkey-server - {server}", 1)
        path = f"{self.bin}:{find_binary().parent}:{os.environ['PATH']}"
        with (self.directory / f"{service}.log").open("ab") as log:
            command = tied_to_parent([shell, option, script])
            return subprocess.Popen(command, env={"PATH": path}, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    @contextmanager
    def nodes(self, first: int) -> Iterator[None]:
        """All of them, at addresses from 127.0.0.FIRST on."""
        with ExitStack() as exits:
            for number in NODES:
                address, data = f"127.0.0.{first + number}", self.directory / f"cluster-{number}"
                data.mkdir(exist_ok=True)
                (self.bin / f"getent.cluster-{number}").write_text(address)
                node = self.run(
                    f"cluster-{number}",
                    f"--port {self.port} --bind {address} --bind-source-addr {address} --dir {data}",
                )
                exits.callback(node.wait)
                exits.callback(node.kill)
            yield

    def join(self) -> None:
        joining = self.run("cluster-join")
        try:
            assert joining.wait(200) == 0, (self.directory / "cluster-join.log").read_text()
        finally:
            joining.kill()
            joining.wait()

    def client(self, first: int, number: int) -> Store:
        return redis.Redis(f"127.0.0.{first + number}", self.port, password="5ecret", socket_timeout=60)


def _port() -> int:
    """One that is free at all addresses, as the one of the bus 10,000 above it."""
    while True:
        port = 11_000 + secrets.randbelow(9_000)
        with suppress(OSError), ExitStack() as exits:
            for one in (port, port + 10_000):
                for address in range(2, 9):
                    probe = exits.enter_context(socket.socket())
                    probe.bind((f"127.0.0.{address}", one))
            return port


@pytest.mark.timeout(600)
def test_three_nodes_become_a_cluster_and_stay_one_at_other_addresses(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with place.nodes(1):
        place.join()
        place.join()  # again, as at every `up`
        slots = place.client(1, 1).execute_command("CLUSTER", "SLOTS")
        assert sorted(last - first + 1 for first, last, *_ in slots) == [5461, 5461, 5462]
        (number,) = [number for number in NODES if _takes(place.client(1, number))]
        wait_until(lambda: place.client(1, number).execute_command("WAITAOF", 1, 0, 1000)[0] == 1, 60, "it is on disk")
    with place.nodes(4):
        place.join()
        assert place.client(4, number).get("kept") == b"1"
        wanted = {f"127.0.0.{4 + one}" for one in NODES}
        wait_until(lambda: _masters(place.client(4, 2)) == wanted, 60, "the second has heard of the others")


def _masters(client: Store) -> set[str]:
    """The addresses that a node knows the masters by."""
    return {master[0].decode() for _, _, master, *_ in client.execute_command("CLUSTER", "SLOTS")}


def _takes(client: Store) -> bool:
    try:
        return bool(client.set("kept", "1"))
    except redis.ResponseError as error:
        if not str(error).startswith("MOVED"):
            raise
        return False
