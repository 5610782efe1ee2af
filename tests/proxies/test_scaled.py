"""What docker-compose.yml puts in front of its APIs (deploy/Caddyfile), with two of them that are found by DNS."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from httpx import Client, TransportError

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import READY_S, ROOT, Stack, free_port, wait_until
from tests.harness.store import emptied
from tests.harness.upstream import Pause, ScriptedUpstream, ending, words
from tests.support.fronts import KINDS
from tests.support.wire import KEY_A, ask

ADDRESSES = ("127.0.0.1", "127.0.0.2")


@contextmanager
def names(addresses: list[str]) -> Iterator[int]:
    """A DNS server that says of every name that it has these addresses, as Docker's does of a service (RFC 1035 §4)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.1)
        over = threading.Event()

        def answer() -> None:
            while not over.is_set():
                try:
                    asked, client = server.recvfrom(512)
                except TimeoutError:
                    continue
                end = asked.index(b"\0", 12) + 5
                found = addresses if asked[end - 4 : end - 2] == b"\0\1" else []  # A, and no AAAA
                head = asked[:2] + b"\x84\0" + struct.pack("!HHHH", 1, len(found), 0, 0)
                rows = [b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + socket.inet_aton(one) for one in found]
                server.sendto(head + asked[12:end] + b"".join(rows), client)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            over.set()
            thread.join()


@contextmanager
def caddy(program: str, api_port: int, dns_port: int, directory: Path) -> Iterator[str]:
    """Runs it as the service `front` does, but for where things are; gives its URL."""
    port = free_port()
    text = (ROOT / "deploy/Caddyfile").read_text()
    for there, here in (
        ("{$API} 8000", f"{{$API}} {api_port}"),
        ("refresh 2s", f"refresh 100ms\n resolvers 127.0.0.1:{dns_port}"),
    ):
        assert text.count(there) == 1
        text = text.replace(there, here)
    (directory / "Caddyfile").write_text(text)
    environment = {"API": "api", "SITE": f":{port}", "XDG_CONFIG_HOME": str(directory), "XDG_DATA_HOME": str(directory)}
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "run", "--adapter", "caddyfile", "--config", str(directory / "Caddyfile")],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )

    def listens() -> bool:
        assert process.poll() is None, (directory / "log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(listens, 90)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def program() -> str:
    """As new as the image is; Debian 12's is not."""
    (kind,) = [one for one in KINDS if one.name == "caddy-new"]
    if (path := kind.path or shutil.which(kind.program)) is None:
        pytest.skip(f"no {kind.program} here")
    return path


@pytest.mark.timeout(500)
def test_one_address_for_all_apis(
    program: str, valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    url = emptied(valkey.url.replace("db=0", "db=11"))
    settings = {"STREAMSPOOL_API_KEYS": f"a:{KEY_A}", "STREAMSPOOL_DRAIN_S": "1", "STREAMSPOOL_KEEPALIVE_S": "0.2"}
    pause = Pause()
    upstream.script("scaled", [*words(3), pause, *words(6)[4:], *ending()])
    found = list(ADDRESSES)
    with Stack(url, upstream.base_url, tmp_path, **settings) as stack, names(found) as dns:
        stack.start("api-2", HOST=ADDRESSES[1], PORT=str(stack.port))
        second = f"http://{ADDRESSES[1]}:{stack.port}"
        key = {"authorization": f"Bearer {KEY_A}"}
        with (
            Client(trust_env=False, timeout=60) as direct,
            caddy(program, stack.port, dns, tmp_path) as front,
            Client(base_url=front, headers=key, trust_env=False, timeout=60) as client,
        ):
            wait_until(lambda: _answers(direct, second), READY_S)
            assert client.get("/metrics").status_code == 404
            body = ask("scripted/scaled", stream=True)
            with client.stream("POST", "/v1/chat/completions", json=body) as response:
                lines = response.iter_lines()
                while "w2 " not in next(lines):
                    pass  # it comes while the provider waits
                for name in ("api", "api-2"):
                    stack.kill(name, signal.SIGTERM)
                rest = []
                with suppress(TransportError):  # a cut, where the proxy shows it
                    for line in lines:
                        rest.append(line)
            assert '"code":"draining"' in "".join(rest)  # and through the front, whichever had it
            pause.go()
            for name in ("api", "api-2"):
                assert stack.process(name).wait(60) == 0
            # One is back; the other is still in the DNS, and then no more. No request is lost to it.
            stack.start("api-2", HOST=ADDRESSES[1], PORT=str(stack.port))
            wait_until(lambda: _answers(direct, second), READY_S)
            for _ in range(8):
                assert client.post("/v1/chat/completions", json=ask("fake/echo")).status_code == 200
            found.remove(ADDRESSES[0])
            for _ in range(8):
                assert client.get("/v1/streams").status_code == 200


def _answers(client: Client, url: str) -> bool:
    try:
        return client.get(f"{url}/readyz").status_code == 200
    except TransportError:
        return False
