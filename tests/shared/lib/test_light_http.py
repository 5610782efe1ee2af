"""One request over a connection of its own: how a response may be framed, cut, refused and delayed."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from shared.lib.light_http import Broken, InvalidURL, asked

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


@asynccontextmanager
async def answering(
    answer: Answer | bytes, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that says `answer` to what it is asked; gives its URL and what it heard."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            heard.append(await reader.readuntil(b"\r\n\r\n"))
            if isinstance(answer, bytes):
                writer.write(answer)
            else:
                await answer(reader, writer)
            await writer.drain()
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        scheme = "https" if tls else "http"
        yield f"{scheme}://localhost:{server.sockets[0].getsockname()[1]}", heard


async def whole(url: str, **given: Any) -> tuple[int, dict[str, str], bytes]:
    async with asked("GET", url, headers={}, connect_timeout_s=30, **given) as response:
        return response.status_code, response.headers, await response.read()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and what nobody asked for",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nX-Trailer: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\n\r\nhello",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello",
    ],
    ids=["length", "too much", "chunked", "to the end", "1.0", "100 first", "103 first"],
)
async def test_a_body_is_whole_however_it_is_framed(answer: bytes) -> None:
    async with answering(answer) as (url, _):
        status, headers, body = await whole(url)
    assert (status, body) == (200, b"hello")
    assert "link" not in headers


async def test_it_comes_as_it_is_said() -> None:
    more = asyncio.Event()

    async def slowly(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nX-Name:  padded \r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await more.wait()
        writer.write(b"3\r\ntwo\r\n0\r\n\r\n")

    async with answering(slowly) as (url, _), asked("GET", url, headers={}, connect_timeout_s=30) as response:
        assert response.headers["x-name"] == "padded"
        pieces = response.pieces()
        assert await anext(pieces) == b"one"
        more.set()
        assert [piece async for piece in pieces] == [b"two"]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "without an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "without an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", "cut"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "cut"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n", "another protocol"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X-Filler: 0123456789\r\n" * 20_000, "no end"),
    ],
    ids=["nothing", "half a head", "length", "chunked", "upgrade", "ssh", "endless head"],
)
async def test_what_is_no_whole_response_is_told(answer: bytes, why: str) -> None:
    async with answering(answer) as (url, _):
        with pytest.raises(Broken, match=why):
            await whole(url)


async def test_a_refusal_is_read_while_the_body_is_on_its_way() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
        await writer.drain()
        while await reader.read(65536):
            pass

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65536

    async with (
        answering(refuse) as (url, _),
        asked("POST", url, headers={}, content=endless(), connect_timeout_s=30) as response,
    ):
        assert (response.status_code, await response.read()) == (413, b"no")


async def test_what_is_sent() -> None:
    async with answering(b"HTTP/1.1 204 No Content\r\n\r\n") as (url, heard):
        assert (await whole(f"{url}/pre fix/ü?a=b c&d=%41"))[0] == 204
        headers = {"authorization": "Bearer k", "user-agent": "mine"}
        async with asked("POST", url, headers=headers, content=b"{}", connect_timeout_s=30) as response:
            assert await response.read() == b""
    first, second = (one.decode().split("\r\n") for one in heard)
    assert first[0] == "GET /pre%20fix/%C3%BC?a=b%20c&d=%41 HTTP/1.1"
    assert f"host: {url.removeprefix('http://')}" in first
    assert second[0] == "POST / HTTP/1.1"
    assert {"content-length: 2", "authorization: Bearer k", "user-agent: mine", "connection: close"} <= set(second)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://localhost", "http://", "http://localhost:port", "http://[::1", ""]
)
async def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidURL):
        await whole(url)


async def test_a_header_has_one_line() -> None:
    async with answering(b"HTTP/1.1 204 No Content\r\n\r\n") as (url, heard):
        with pytest.raises(ValueError, match="line break"):
            async with asked("GET", url, headers={"authorization": "k\r\nx: y"}, connect_timeout_s=5):
                pass
    assert heard == []


async def test_why_there_is_no_connection() -> None:
    with socket.socket() as unused:  # bound, and so nobody else's
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        # Who is asked for names may be slow: that is told as what it is.
        for address, why in (
            (url, "connection refused"),
            ("http://nowhere.invalid", "name is not known|no answer in time"),
        ):
            with pytest.raises(Broken, match=why):
                await whole(address)


async def test_tls_is_that_of_the_host_and_of_an_authority_that_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(tls)
    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", tls) as (url, _):
        with pytest.raises(Broken, match="certificate is not accepted"):
            await whole(url)
        bundle = tmp_path / "ca.pem"
        authority.cert_pem.write_to_path(str(bundle))
        monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
        assert (await whole(url))[2] == b"ok"
        with pytest.raises(Broken, match="certificate is not accepted"):
            await whole(url.replace("localhost", "127.0.0.1"))


async def test_a_server_without_tls_is_told_as_that() -> None:
    def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        with pytest.raises(Broken, match="TLS"):
            await whole(f"https://localhost:{server.sockets[0].getsockname()[1]}")


async def test_a_body_that_fails_is_told_as_what_it_is() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise RuntimeError("the file is gone")

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with answering(wait) as (url, _):
        with pytest.raises(RuntimeError, match="the file is gone"):
            async with asked("POST", url, headers={"content-length": "9"}, content=broken(), connect_timeout_s=30):
                pass
