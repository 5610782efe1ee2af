"""Several machines on this one: each a network namespace with an address, and a cable that can be pulled.

Hidden here: namespaces and the bridge that joins them, and what stands in for them where nobody may make any (a container
without CAP_NET_ADMIN): the loopback's other addresses, 127.0.0.2 and so on, where a pulled cable is that all processes stop.

What runs here outlives no test: namespaces have no names, so they go with their last process, and the wires go with them. The
addresses are of 198.18.0.0/15, which is for tests and led nowhere (RFC 2544, appendix C.2.2).
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

from shared.cli.embedded import tied_to_parent
from tests.harness.processes import wait_until

_NETS = 256
_WAIT_S = 60


class NotPossible(Exception):
    """This machine makes no namespaces; the text says why."""


class Host:
    """`within` are the words before a command that have it run there, `address` is where it is reached."""

    def __init__(self, address: str, within: list[str], wire: Callable[[bool], None]) -> None:
        self.address, self.within, self._wire = address, within, wire

    @contextmanager
    def unplugged(self, *processes: subprocess.Popen[bytes]) -> Iterator[None]:
        """Its cable is pulled: nothing arrives, nothing leaves, and nobody is told. `processes` are all that run there."""
        self._wire(False)
        for process in [] if self.within else processes:
            process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for process in [] if self.within else processes:
                process.send_signal(signal.SIGCONT)
            self._wire(True)


class Hosts:
    """So many hosts; a context manager. `outside` is this process's own address as they reach it.

    `instead` says why they are addresses of loopback, and is empty where they are namespaces.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._exits = ExitStack()
        self.all: list[Host] = []
        self.outside = self.instead = ""

    def __enter__(self) -> Self:
        with ExitStack() as exits:
            try:
                self._namespaces(exits)
            except NotPossible as reason:
                exits.close()
                self.instead, self.outside = str(reason), "127.0.0.1"
                self.all = [Host(f"127.0.0.{number + 2}", [], lambda _: None) for number in range(self._count)]
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def _namespaces(self, exits: ExitStack) -> None:
        switch = exits.enter_context(_namespace())
        inside = _within(switch)
        number = _wire_to(switch)
        net = f"198.18.{number}"
        _run("ip", "address", "add", f"{net}.1/24", "dev", f"spool{number}")
        _run("ip", "link", "set", f"spool{number}", "up")
        _run(*inside, "ip", "link", "add", "switch", "type", "bridge")
        for name in ("switch", "out"):
            _run(*inside, "ip", "link", "set", name, "up", *(("master", "switch") if name == "out" else ()))
        self.outside = f"{net}.1"
        for place in range(2, self._count + 2):
            pid, port = exits.enter_context(_namespace()), f"port{place}"
            within = _within(pid)
            _run(*inside, "ip", "link", "add", port, "type", "veth", "peer", "name", "wire", "netns", str(pid))
            _run(*inside, "ip", "link", "set", port, "up", "master", "switch")
            _run(*within, "ip", "address", "add", f"{net}.{place}/24", "dev", "wire")
            for name in ("lo", "wire"):
                _run(*within, "ip", "link", "set", name, "up")
            self.all.append(Host(f"{net}.{place}", within, _puller(inside, port)))
        self._check()

    def _check(self) -> None:
        """A firewall may stand between."""
        asking = (
            f"import socket; socket.create_connection(({self.outside!r}, int(__import__('sys').argv[1])), {_WAIT_S})"
        )
        with socket.create_server((self.outside, 0)) as server:
            for host in self.all:
                _run(*host.within, sys.executable, "-I", "-S", "-c", asking, str(server.getsockname()[1]))


@contextmanager
def _namespace() -> Iterator[int]:
    """The process that holds it open."""
    own = os.readlink("/proc/self/ns/net")
    try:
        command = tied_to_parent(["unshare", "--net", "sleep", "infinity"])
        holder = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as error:
        raise NotPossible(str(error)) from None
    try:
        wait_until(lambda: holder.poll() is not None or _net_of(holder.pid) != own, _WAIT_S, "a namespace")
        if holder.poll() is not None:
            assert holder.stdout is not None
            raise NotPossible(holder.stdout.read().decode().strip()[-200:])
        yield holder.pid
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()


def _net_of(pid: int) -> str:
    with suppress(OSError):  # it may just have ended
        return os.readlink(f"/proc/{pid}/ns/net")
    return os.readlink("/proc/self/ns/net")


def _within(pid: int) -> list[str]:
    return ["nsenter", f"--net=/proc/{pid}/ns/net"]


def _wire_to(switch: int) -> int:
    """A wire from here to the switch: its number, which no other run on this machine has."""
    first = secrets.randbelow(_NETS)
    for number in ((first + step) % _NETS for step in range(_NETS)):
        name = f"spool{number}"
        try:
            _run("ip", "link", "add", name, "type", "veth", "peer", "name", "out", "netns", str(switch))
        except NotPossible:
            if not Path(f"/sys/class/net/{name}").exists():
                raise
        else:
            return number
    raise NotPossible("all numbers are taken")


def _puller(inside: list[str], port: str) -> Callable[[bool], None]:
    return lambda up: _run(*inside, "ip", "link", "set", port, "up" if up else "down")


def _run(*words: str) -> None:
    path = {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}  # where some keep `ip`
    try:
        done = subprocess.run(words, env=path, capture_output=True, text=True, timeout=2 * _WAIT_S, check=False)
    except OSError as error:
        raise NotPossible(str(error)) from None
    if done.returncode:
        raise NotPossible(f"{' '.join(words[:4])}: {(done.stderr or done.stdout).strip()[-200:]}")
