"""Providers behind a proxy: a real one on loopback, which alone can reach names that do not exist here."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme

from shared.lib import http
from shared.lib.proxies import Proxies, from_environment
from shared.lib.tasks import cancel
from tests.harness.upstream import DONE, END, Wire, chunk, serving

pytestmark = pytest.mark.timeout(240)
ROOT = Path(__file__).parents[3]


class ConnectProxy:
    """Leads every CONNECT, and every request in absolute form, to `target`, whatever name was asked for."""

    def __init__(self, target: int, credentials: str | None = None) -> None:
        self._target, self._credentials = target, credentials
        self.asked: list[str] = []
        self.port = 0
        self.serving: set[asyncio.Task[Any]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if task := asyncio.current_task():
            self.serving.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            self.asked.append(head.partition(" HTTP/")[0])
            if (
                self._credentials is not None
                and f"proxy-authorization: basic {self._credentials}".lower() not in head.lower()
            ):
                writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
                return
            inner, outer = await asyncio.open_connection("127.0.0.1", self._target)
            if head.startswith("CONNECT"):
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                method, rest = head.split(" ", 1)
                outer.write(f"{method} /{rest.split('/', 3)[3]}".encode("latin-1"))
            await asyncio.gather(self._pass(reader, outer), self._pass(inner, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            with suppress(OSError):
                await writer.drain()
            writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError):
                while data := await reader.read(65536):
                    writer.write(data)
                    await writer.drain()
        finally:
            writer.close()


@asynccontextmanager
async def proxying(target: int, credentials: str | None = None) -> AsyncIterator[ConnectProxy]:
    proxy = ConnectProxy(target, credentials)
    listener = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = listener.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        listener.close()
        await cancel(*proxy.serving)


async def answer(wire: Wire) -> None:
    await wire.head(200)
    await wire.send(chunk("through"), END, DONE)


async def posted(url: str, proxies: Proxies) -> bytes:
    async with http.open_client(60, proxies) as client:
        headers = {"content-type": "application/json"}
        response = await client.request("POST", url, headers=headers, content=b"{}")
        try:
            body = b""
            async for piece in response.pieces():
                body += piece
                if DONE in body:
                    break
            return body
        finally:
            response.close()


async def test_a_name_that_only_the_proxy_knows_is_asked_through_it() -> None:
    async with serving(answer) as server, proxying(int(server.url.split(":")[2].split("/")[0])) as proxy:
        proxies = from_environment({"HTTP_PROXY": f"127.0.0.1:{proxy.port}"})
        assert b"through" in await posted("http://provider.invalid/v1/chat", proxies)
    assert proxy.asked == ["POST http://provider.invalid/v1/chat"]


async def test_a_proxy_that_wants_a_password_gets_it_and_a_refusal_is_told() -> None:
    credentials = base64.b64encode(b"me:p@ss").decode()
    async with serving(answer) as server, proxying(int(server.url.split(":")[2].split("/")[0]), credentials) as proxy:
        address = f"127.0.0.1:{proxy.port}"
        good = from_environment({"HTTP_PROXY": f"http://me:p%40ss@{address}"})
        assert b"through" in await posted("http://provider.invalid/v1/chat", good)
        wrong = from_environment({"HTTPS_PROXY": f"http://me:canary@{address}"})
        with pytest.raises(http.ProxyError) as caught:
            await posted("https://provider.invalid/v1/chat", wrong)
    assert http.reason(caught.value) == "the proxy refuses with HTTP 407"
    assert proxy.asked[-1] == "CONNECT provider.invalid:443"


async def test_a_proxy_that_is_away_is_told_apart_from_a_provider_that_is() -> None:
    with pytest.raises(http.ProxyError) as caught:
        await posted("http://provider.invalid/v1", from_environment({"http_proxy": "http://127.0.0.1:1"}))
    assert http.reason(caught.value) == "the proxy cannot be reached (connection refused)"


async def test_over_tls_a_provider_is_asked_through_a_tunnel_and_its_certificate_is_checked(tmp_path: Path) -> None:
    """As the doctor does it, in a process with an authority of its own."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("provider.invalid").configure_cert(context)

    async def provider(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            body = json.dumps({"data": [{"id": "m"}]}).encode()
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
            )
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(provider, "127.0.0.1", 0, ssl=context)
    table = '[providers.{}]\nbase_url = "https://{}.invalid/v1"\n'
    (tmp_path / "streamspool.toml").write_text(table.format("named", "provider") + table.format("false", "another"))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STREAMSPOOL_")}
    try:
        async with proxying(listener.sockets[0].getsockname()[1]) as proxy:
            variables = {
                "HTTPS_PROXY": f"http://user:canary@127.0.0.1:{proxy.port}",
                "SSL_CERT_FILE": str(tmp_path / "ca.pem"),
            }
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "worker.check", "--ask"),
                cwd=tmp_path,
                env={**clean, **variables, "PYTHONPATH": str(ROOT)},
                stdout=asyncio.subprocess.PIPE,
            )
            said, _ = await process.communicate()
    finally:
        listener.close()
    rows = {row["name"]: row for row in json.loads(said)["providers"]}
    assert rows["named"]["ok"] is True
    assert rows["named"]["proxy"] == f"http://127.0.0.1:{proxy.port} (HTTPS_PROXY)"
    assert rows["false"]["ok"] is False
    assert "certificate is not accepted" in rows["false"]["found"]
    assert sorted(proxy.asked) == ["CONNECT another.invalid:443", "CONNECT provider.invalid:443"]
    assert b"canary" not in said


@pytest.mark.parametrize(
    ("listed", "url", "direct"),
    [
        ("", "http://a.example/v1", False),
        ("*", "http://a.example/v1", True),
        ("example", "http://a.example/v1", True),
        (".example", "http://a.example/v1", True),
        ("*.example", "http://a.example/v1", True),
        ("b.example, a.example", "http://A.example./v1", True),
        ("ample", "http://a.example/v1", False),
        ("a.example:8080", "http://a.example:8080/v1", True),
        ("a.example:8080", "http://a.example/v1", False),
        ("a.example:443", "https://a.example/v1", True),
        ("10.0.0.0/8", "http://10.1.2.3/v1", True),
        ("10.0.0.1", "http://10.1.2.3/v1", False),
        ("::1,fd00::/8", "http://[fd00::7]:80/v1", True),
        ("", "http://localhost:11434/api", True),
        ("", "http://127.0.0.5/api", True),
        ("", "http://[::1]:1/api", True),
        ("", "http://localhost.:11434/api", True),
        ("", "http://ollama.LOCALHOST/api", True),
        ("", "http://[::ffff:127.0.0.1]:1/api", True),
        ("", "http://localhost.example/v1", False),
        ("10.0.0.0/8", "http://[::ffff:10.1.2.3]/v1", True),
        ("10.0.0.0/8:8080", "http://10.1.2.3:8080/v1", True),
        ("10.0.0.0/8:8080", "http://10.1.2.3/v1", False),
        ("[fd00::7]:443", "https://[fd00::7]/v1", True),
        ("a.example;b.example", "http://a.example/v1", False),
        ("a.example..,  ,", "http://a.example/v1", True),
        ("A.EXAMPLE:80", "http://a.example/v1", True),
    ],
)
def test_what_no_proxy_lists_and_this_machine_are_asked_directly(listed: str, url: str, direct: bool) -> None:
    proxies = from_environment({"http_proxy": "http://p:1", "https_proxy": "http://p:1", "NO_PROXY": listed})
    assert (proxies.proxy_for(url) is None) == direct


def test_lower_case_wins_and_each_scheme_has_its_own() -> None:
    proxies = from_environment({"HTTPS_PROXY": "http://upper:1", "https_proxy": "http://lower:1", "ALL_PROXY": "all:2"})
    secure, plain = proxies.proxy_for("https://a.example"), proxies.proxy_for("http://a.example")
    assert secure is not None
    assert plain is not None
    assert (secure.url, secure.variable, plain.url) == ("http://lower:1", "https_proxy", "http://all:2")


@pytest.mark.parametrize(
    "value",
    [
        "socks5://p:1",
        "http://",
        "http://p:port",
        "ftp://p",
        "http://p:0",
        "http://p:70000",
        "http://p q:1",
        "http://[p:1",
    ],
)
def test_what_is_no_proxy_is_told_without_its_value_and_not_used(value: str) -> None:
    proxies = from_environment({"HTTPS_PROXY": value})
    assert proxies.proxy_for("https://a.example") is None
    assert proxies.notices == ("HTTPS_PROXY names no http:// or https:// proxy and is not used",)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("p:3128", ("http://p:3128", None, "")),
        (" http://p:3128/ ", ("http://p:3128", None, "")),
        ("HTTP://P:3128", ("http://p:3128", None, "")),
        ("https://p", ("https://p", None, "")),
        ("http://me:p@ss:w@p:1", ("http://p:1", "me", "p@ss:w")),
        ("http://me@p:1", ("http://p:1", "me", "")),
        ("http://[::1]:3128", ("http://[::1]:3128", None, "")),
        ("me:%c3%bc@p:1", ("http://p:1", "me", "ü")),
    ],
)
def test_f6_a_proxy_as_people_write_it(value: str, found: tuple[str, str | None, str]) -> None:
    proxy = from_environment({"https_proxy": "", "HTTPS_PROXY": value}).proxy_for("https://a.example/v1")
    assert proxy is not None
    assert (proxy.url, proxy.user, proxy.password) == found
