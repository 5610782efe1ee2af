"""The first contact with real servers: what can never work is refused with the reason, all else is waited for."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from shared.errors import Unusable
from shared.store.contact import check_server
from shared.store.redis import connect
from tests.harness.loopback import LoopThread, stop_listening
from tests.harness.processes import free_port
from tests.support.proxy import Proxy
from tests.support.server import Certificates, Server


async def waited_for(url: str) -> str:
    """The reason that is logged for a server that is waited for."""
    with structlog.testing.capture_logs() as logs:
        await check_server(url)
    (log,) = [log for log in logs if log["event"] == "waiting for redis"]
    return str(log.get("reason") or log.get("said"))


async def refused(url: str) -> str:
    with structlog.testing.capture_logs() as logs, pytest.raises(Unusable) as caught:
        await check_server(url)
    assert not logs
    assert "canary" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("contact")


@pytest.fixture(scope="module")
def certificates(directory: Path) -> Certificates:
    return Certificates(directory / "certificates", "localhost", "127.0.0.1")


@pytest.fixture(scope="module")
def encrypted(directory: Path, certificates: Certificates) -> Iterator[tuple[Server, int]]:
    """A server and its port with TLS."""
    port = free_port()
    with Server(directory / "encrypted", *certificates.options(port), kind="redis") as server:
        yield server, port


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[Server]:
    with Server(directory / "server", "--databases", "3") as running:
        running.client().acl_setuser("only", enabled=True, passwords=["+right"], commands=["+get"])
        yield running


class Answering(LoopThread):
    """Something that is no Redis, and says one thing to everybody."""

    def __init__(self, answer: bytes) -> None:
        super().__init__()
        self._answer = answer

    def __enter__(self) -> Answering:
        super().__enter__()
        self.port = self.call(self._listen())
        return self

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(self._answer)
        writer.write_eof()
        while await reader.read(100):  # what it says after that: to close before it was read would reset the connection
            pass
        writer.close()

    async def _close(self) -> None:
        await stop_listening(self._server)
        await super()._close()


async def test_wrong_users_passwords_and_databases(server: Server) -> None:
    where = f"127.0.0.1:{server.port}"
    assert "refuses the password or user" in await refused(f"redis://:canary@{where}")
    assert "refuses the password or user" in await refused(f"redis://nobody:canary@{where}")
    assert "DB index is out of range" in await refused(f"redis://{where}/3")
    with structlog.testing.capture_logs():
        await check_server(f"redis://{where}/2")
        await check_server(f"redis://only:right@{where}")  # may do next to nothing: found out by whoever needs it


@pytest.mark.parametrize("denied", [[], ["INFO"], ["WAITAOF", "WAIT"]])
async def test_a_user_who_may_not_ask_what_is_forgotten_is_told_of(server: Server, denied: list[str]) -> None:
    commands = ["+@all", *(f"-{name.lower()}" for name in denied)]
    server.client().acl_setuser("some", enabled=True, reset=True, passwords=["+pw"], commands=commands)
    with structlog.testing.capture_logs() as logs:
        await check_server(server.url.replace("redis://", "redis://some:pw@"))
    assert [log["denied"] for log in logs if "may forget" in log["event"]] == ([denied] if denied else [])


async def test_a_server_that_was_made_without_config_says_what_it_can(directory: Path) -> None:
    """As managed ones are: there is no such command, for whoever asks. INFO tells the policy all the same."""
    own = ("--rename-command", "CONFIG", "", "--maxmemory", "100mb", "--maxmemory-policy", "volatile-lru")
    with Server(directory / "managed", *own) as managed:
        with structlog.testing.capture_logs() as logs:
            await check_server(managed.url)
        assert [log["event"].partition(":")[0].partition(";")[0] for log in logs] == [
            "redis has no append-only file, and CONFIG, which tells whether it saves, is withheld",
            "redis may evict running streams",
        ]


async def test_what_is_not_there_yet_is_waited_for_and_why() -> None:
    assert await waited_for("redis://127.0.0.1:1") == "connection refused"
    assert await waited_for("rediss://127.0.0.1:1") == "connection refused"
    assert await waited_for("unix:///nowhere/valkey.sock") == "no such socket"
    slow = "no answer in time"  # of whoever is asked for names
    known = ("name not known", "name cannot be looked up just now", slow)
    assert await waited_for("redis://nowhere.invalid") in known
    assert await waited_for("redis+sentinel://127.0.0.1:1/mymaster") == "sentinels: connection refused"


@pytest.mark.parametrize(
    "said",
    [
        "LOADING Valkey is loading the dataset in memory",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "MISCONF Errors writing to the AOF file: No space left on device",
        "BUSY Valkey is busy running a script.",
    ],
)
async def test_what_passes_is_waited_for(server: Server, said: str) -> None:
    with Proxy(("127.0.0.1", server.port)) as proxy:
        proxy.answer(f"-{said}\r\n".encode())
        assert await waited_for(f"redis://127.0.0.1:{proxy.port}") == said[:120]


async def test_names_that_are_none() -> None:
    assert "has no host name" in await refused("redis://a..b")


async def test_something_else_on_the_port() -> None:
    with Answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as other:
        assert "does not speak Redis's protocol" in await refused(f"redis://127.0.0.1:{other.port}")
    with Answering(b"") as other:
        assert await waited_for(f"redis://127.0.0.1:{other.port}") == "connection closed by server"


async def test_a_cluster_is_refused(directory: Path) -> None:
    own = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    with Server(directory / "cluster", *own) as cluster:
        assert "is a node of a cluster" in await refused(cluster.url)


async def test_a_replica_is_waited_for_and_told_of(server: Server, directory: Path) -> None:
    with Server(directory / "replica", "--replicaof", "127.0.0.1", str(server.port)) as replica:
        with structlog.testing.capture_logs() as logs:
            await check_server(replica.url)
        assert any(log["event"].startswith("redis is a replica") for log in logs)


# ---- TLS


async def test_a_certificate_must_be_trusted_and_fit_the_name(
    encrypted: tuple[Server, int], certificates: Certificates, directory: Path
) -> None:
    _, port = encrypted
    assert "certificate verify failed" in await refused(f"rediss://:canary@localhost:{port}")
    trusted = f"ssl_ca_certs={certificates.ca}"
    with structlog.testing.capture_logs():
        await check_server(f"rediss://localhost:{port}?{trusted}")
    foreign = Certificates(directory / "foreign", "elsewhere.example")
    other = free_port()
    with Server(directory / "elsewhere", *foreign.options(other), kind="redis"):
        url = f"rediss://localhost:{other}?ssl_ca_certs={foreign.ca}"
        assert "not valid for 'localhost'" in await refused(url)
        with structlog.testing.capture_logs():
            await check_server(f"{url}&ssl_check_hostname=false")


@pytest.mark.parametrize("unchecked", ["none", "CERT_NONE"])
async def test_a_certificate_is_not_checked_where_that_is_asked_for_and_a_warning_says_so(
    encrypted: tuple[Server, int], unchecked: str
) -> None:
    _, port = encrypted
    with structlog.testing.capture_logs() as logs:
        await check_server(f"rediss://localhost:{port}?ssl_cert_reqs={unchecked}")
    assert any("certificate is not checked" in log["event"] for log in logs)
    client = connect(f"rediss://localhost:{port}?ssl_cert_reqs={unchecked}", max_connections=2)
    assert await client.ping()
    await client.aclose(close_connection_pool=True)


async def test_tls_on_one_side_only_is_told_from_a_server_that_is_away(encrypted: tuple[Server, int]) -> None:
    """A Redis without TLS waits for more of what is a handshake; one with TLS hangs up."""
    server, port = encrypted
    assert "does not speak TLS on that port" in await refused(f"rediss://:canary@localhost:{server.port}")
    assert "speaks TLS on that port" in await refused(f"redis://:canary@localhost:{port}")


async def test_a_server_that_wants_a_certificate_of_ours(directory: Path, certificates: Certificates) -> None:
    port = free_port()
    with Server(directory / "mutual", *certificates.options(port, of_clients="yes"), kind="redis"):
        url = f"rediss://localhost:{port}?ssl_ca_certs={certificates.ca}"
        assert "certificate required" in await refused(url)
        with structlog.testing.capture_logs():
            await check_server(f"{url}&ssl_certfile={certificates.cert}&ssl_keyfile={certificates.key}")


async def test_a_context_is_made_once_however_often_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads every authority there is: made for each try it took a third of a core."""
    made = 0
    real = ssl.create_default_context

    def counted() -> ssl.SSLContext:
        nonlocal made
        made += 1
        return real()

    monkeypatch.setattr(ssl, "create_default_context", counted)
    client = connect("rediss://127.0.0.1:1", max_connections=4)
    for _ in range(5):
        results = await asyncio.gather(*(client.ping() for _ in range(8)), return_exceptions=True)
        assert all(isinstance(result, Exception) for result in results)
    assert made == 1
