"""The HTTP client's bytes: what a request is on the wire, to the letter, and what of a response is handed out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from shared.lib import http
from shared.lib.proxies import NO_PROXIES, Proxies, from_environment

OURS = f"user-agent: {http.user_agent()}\r\naccept: */*\r\naccept-encoding: identity\r\n"
ENDED = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Wire:
    """Says `answer` to whoever asks, and ends the connection; `asked` is what came."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self.asked: list[str] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
            size = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0] or 0)
            self.asked.append(head + (await reader.readexactly(size)).decode())
            writer.write(self._answer)
            await writer.drain()
        finally:
            writer.close()


@asynccontextmanager
async def serving(answer: bytes = ENDED) -> AsyncIterator[Wire]:
    wire = Wire(answer)
    listener = await asyncio.start_server(wire.serve, "127.0.0.1", 0)
    wire.port = listener.sockets[0].getsockname()[1]
    async with listener:
        yield wire


async def sent(
    method: str,
    url: str,
    headers: dict[str, str],
    content: bytes | Pieces | None,
    user: str | None = None,
) -> str:
    """What stands on the wire, with PORT for the port. With a `user` it is what a proxy is sent."""
    async with serving() as wire:
        proxy = {} if user is None else {"HTTP_PROXY": f"http://{user}127.0.0.1:{wire.port}"}
        proxies: Proxies = from_environment(proxy) if proxy else NO_PROXIES
        async with http.open_client(60, proxies) as client:
            response = await client.request(
                method, url.replace("PORT", str(wire.port)), headers=headers, content=content
            )
            assert await response.piece() == b""
            response.close()
    [asked] = wire.asked
    return asked.replace(str(wire.port), "PORT")


class Pieces:
    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"{"
        yield b"}"


REQUESTS = {
    "as to a provider": (
        (
            "POST",
            {"content-type": "application/json", "accept": "text/event-stream", "authorization": "Bearer k"},
            b"{}",
        ),
        f"POST /v1 HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n{OURS.replace('*/*', 'text/event-stream')}"
        "content-type: application/json\r\nauthorization: Bearer k\r\nContent-Length: 2\r\n\r\n{}",
    ),
    "a question": (("GET", {}, None), f"GET /v1 HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n{OURS}\r\n"),
    "without a type": (
        ("POST", {}, b"{}"),
        f"POST /v1 HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n{OURS}Content-Length: 2\r\n\r\n{{}}",
    ),
    "without a body": (
        ("POST", {}, None),
        f"POST /v1 HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nContent-Length: 0\r\n{OURS}\r\n",
    ),
    "in pieces": (
        ("POST", {"content-length": "2"}, Pieces()),
        f"POST /v1 HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n{OURS}content-length: 2\r\nConnection: close\r\n\r\n{{}}",
    ),
    "for another host": (
        ("POST", {"host": "other"}, b"{}"),
        f"POST /v1 HTTP/1.1\r\nhost: other\r\n{OURS}Content-Length: 2\r\n\r\n{{}}",
    ),
}


@pytest.mark.parametrize("what", REQUESTS)
async def test_a_request_to_the_letter(what: str) -> None:
    (method, headers, content), expected = REQUESTS[what]
    assert await sent(method, "http://127.0.0.1:PORT/v1", headers, content) == expected


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("HTTP://127.0.0.1:PORT", "/"),
        ("http://LocalHost:PORT/a b?x=ü&y=%2f#frag", "/a%20b?x=%C3%BC&y=%2f"),
        ("http://127.0.0.1:PORT/a/../b/./c?", "/b/c"),
        ('http://127.0.0.1:PORT/a%zz?q=[1]&z={"a"}|^`', "/a%zz?q=[1]&z={%22a%22}|^`"),
        ("http://127.0.0.1:PORT/?key=a%20b+c", "/?key=a%20b+c"),
        ("http://127.0.0.1:PORT//x//y", "//x//y"),
    ],
)
async def test_the_path_of_a_url_as_it_is_asked(url: str, line: str) -> None:
    host = "localhost" if "Local" in url else "127.0.0.1"
    assert (await sent("GET", url, {}, None)).startswith(f"GET {line} HTTP/1.1\r\nHost: {host}:PORT\r\n")


@pytest.mark.parametrize("user", ["", "me:p%40@"])
@pytest.mark.parametrize(
    ("url", "asked", "host"),
    [
        ("http://bücher.Example/v1", "http://xn--bcher-kva.example/v1", "xn--bcher-kva.example"),
        ("http://a.example:80/x", "http://a.example/x", "a.example"),
        ("http://a.example:8080/x?y", "http://a.example:8080/x?y", "a.example:8080"),
        ("http://[::2]:99/x", "http://[::2]:99/x", "[::2]:99"),
        ("http://a.example./", "http://a.example./", "a.example."),
    ],
)
async def test_a_request_through_a_proxy_to_the_letter(user: str, url: str, asked: str, host: str) -> None:
    credentials = "proxy-authorization: Basic bWU6cEA=\r\n" if user else ""
    expected = f"POST {asked} HTTP/1.1\r\nHost: {host}\r\n{OURS}Content-Length: 2\r\n{credentials}\r\n{{}}"
    assert await sent("POST", url, {}, b"{}", user) == expected


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("http://a.example:x/", http.InvalidURL),
        ("http://a\nb/", http.InvalidURL),
        ("http://010.1.2.3/", http.InvalidURL),
        ("http://a.example/" + "x" * 70_000, http.InvalidURL),
        ("http://a.example:99999/", http.TransportError),
        ("ftp://a.example/", http.TransportError),
        ("/v1", http.TransportError),
        ("http://", http.TransportError),
        ("http://u:p@a.example/", http.TransportError),
    ],
)
async def test_what_cannot_be_asked_is_told_each_time(url: str, error: type[Exception]) -> None:
    async with http.open_client(60) as client:
        for _ in range(2):
            with pytest.raises(error) as caught:
                await client.request("GET", url, headers={"authorization": "Bearer k"})
            assert http.reason(caught.value) == type(caught.value).__name__


async def test_no_header_begins_another_and_none_is_guessed() -> None:
    async with serving() as wire, http.open_client(60) as client:
        url = f"http://127.0.0.1:{wire.port}/"
        with pytest.raises(http.TransportError):
            await client.request("GET", url, headers={"authorization": "Bearer k\r\nx: y"})
        with pytest.raises(UnicodeEncodeError):
            await client.request("GET", url, headers={"authorization": "Bearer ü"})
    assert wire.asked == []


async def test_each_proxy_decision_is_of_its_own_url() -> None:
    """What is kept of one URL is never another's."""
    async with serving() as wire:
        proxies = from_environment({"HTTP_PROXY": f"127.0.0.1:{wire.port}", "NO_PROXY": "b.example"})
        async with http.open_client(60, proxies) as client:
            for _ in range(2):
                (await client.request("GET", "http://a.example/x", headers={})).close()
                (await client.request("GET", f"http://localhost:{wire.port}/y", headers={})).close()
    assert [asked.partition(" HTTP")[0] for asked in wire.asked] == ["GET http://a.example/x", "GET /y"] * 2


async def test_headers_by_any_case_joined_where_they_came_in_several_and_as_text_of_some_encoding() -> None:
    head = b"HTTP/1.1 203 x\r\nContent-Type: a\r\nX-One: 1\r\nx-one: 2\r\nset-cookie: a=b\r\n"
    head += b"x-utf: \xc3\xbc\r\nx-latin: \xfc\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    async with serving(head) as wire, http.open_client(60) as client:
        response = await client.request("GET", f"http://127.0.0.1:{wire.port}/", headers={})
        headers = response.headers
        response.close()
    assert (response.status_code, headers["content-type"], headers.get("CONTENT-type")) == (203, "a", "a")
    assert (headers["x-one"], headers["x-utf"], headers["x-latin"]) == ("1, 2", "ü", "ü")
    assert (headers.get("x-two"), headers.get("x-two", "-"), "x-two" in headers, "X-ONE" in headers) == (
        *(None, "-", False),
        True,
    )
    assert (len(headers), sorted(headers)[:2]) == (7, ["connection", "content-length"])


async def test_what_came_before_a_connection_broke_is_handed_out_and_the_break_is_told_from_then_on() -> None:
    async with serving(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf") as wire, http.open_client(60) as client:
        response = await client.request("GET", f"http://127.0.0.1:{wire.port}/", headers={})
        connection = response._response.connection
        assert connection is not None
        async with asyncio.timeout(60):
            while response._content.exception() is None:  # noqa: ASYNC110 - it broke before anybody has read
                await asyncio.sleep(0.001)
        assert await response.piece() == b"half"
        for _ in range(2):
            with pytest.raises(http.TransportError):
                await response.piece()
        response.close()
        assert response._response.connection is None


@pytest.mark.parametrize("tapped", [False, True])
@pytest.mark.parametrize("body", [b"zz\r\n", b"-5\r\n", b"fffffffffffffffff\r\n", b"4\r\nsaidXX"])
async def test_a_body_whose_chunks_are_none_breaks_at_once(body: bytes, tapped: bool) -> None:
    """aiohttp closes the connection, and tells nobody who waits for the body: the provider would time out, minutes later."""
    waited = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        await waited.wait()
        writer.write(body)
        assert await reader.read() == b"", "the client has closed"
        writer.close()

    taken = list[bytes]()

    def take(data: bytes) -> bool:
        taken.append(data)
        return True

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener, http.open_client(60) as client:
        response = await client.request("GET", f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/", headers={})
        if tapped:
            response.offer(take)
        asyncio.get_running_loop().call_soon(waited.set)
        async with asyncio.timeout(60):
            with pytest.raises(http.TransportError):
                while piece := await response.piece():
                    taken.append(piece)
        response.close()
    assert b"".join(taken) == (b"said" if b"said" in body else b"")
