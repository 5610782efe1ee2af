"""One POST to one address, over a connection of its own, of whose answer only the head counts: how webhooks are sent.

Hidden here: HTTP/1.1 as far as that takes it. The status line decides as soon as the head is there: how the body is framed,
whether it comes slowly, without end, cut off or not at all does not matter (RFC 9112 §2.2 lets a recipient take bare
line feeds; RFC 9110 §15.2 has any number of 1xx before the answer). No library for it, because each that there is reads
the framing first and takes an answer for none when that is odd.

The caller has looked the name up and approved of the address: it must not be looked up again by a library (DNS rebinding), nor
find a kept connection by the address alone: Host, SNI and certificate are the name's, the connection is the address's.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple
from urllib.parse import quote

from shared.lib.egress import Address, Place

_HEAD_BYTES = 64 * 1024
_LINGER_S = 1.0
_LINGER_BYTES = 16 * 1024
"""So long, and so much, of a body is let come, out of politeness: a receiver may take a reset for a failure of its own."""

_STATUS = re.compile(rb"HTTP/1\.[0-9] ([1-9][0-9]{2})(?: [^\r\n]*)?\r?\n")
_AS_IT_IS = "!#$%&'()*+,/:;=?@[]~"
"""What a path and query may hold beside letters and digits; the rest of the visible characters is percent-encoded."""

_SWITCHING = 101


class NotConnected(Exception):
    """Nothing listens there, or TLS failed."""


class NotAnswered(Exception):
    """The connection ended before the head of an answer had come, or that was none."""


class Answer(NamedTuple):
    """`headers` by their names in lower case; of one that came twice, the first."""

    status: int
    headers: dict[str, str]


@asynccontextmanager
async def posted(
    place: Place, address: Address, *, headers: Mapping[str, str], content: bytes, tls: ssl.SSLContext
) -> AsyncIterator[Answer]:
    """Sends it, and gives the answer's head; the body is let come for a moment when the context ends.

    `headers` go out as they are: they must be the caller's own. Nothing times out by itself before there is an answer.
    Raises NotConnected, NotAnswered.
    """
    try:
        reader, writer = await asyncio.open_connection(
            str(address),
            place.port,
            limit=_HEAD_BYTES,
            ssl=tls if place.scheme == "https" else None,
            server_hostname=place.host if place.scheme == "https" else None,
        )
    except (OSError, ValueError) as error:  # ValueError: a name that no certificate can have
        raise NotConnected from error
    try:
        writer.write(_request(place, headers, content))  # some hundred bytes: nothing to wait for
        yield await _answer(reader)
        await _linger(reader, writer)
    finally:
        writer.transport.abort()


def _request(place: Place, headers: Mapping[str, str], content: bytes) -> bytes:
    lines = [f"POST {quote(place.path, safe=_AS_IT_IS)} HTTP/1.1", f"host: {place.authority}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += ["accept: */*", "accept-encoding: identity", f"content-length: {len(content)}", "connection: close"]
    return "\r\n".join((*lines, "\r\n")).encode("ascii") + content


async def _answer(reader: asyncio.StreamReader) -> Answer:
    left = _HEAD_BYTES
    try:
        while True:
            line = await reader.readuntil(b"\n")
            match = _STATUS.fullmatch(line)
            if match is None:
                raise NotAnswered
            headers: dict[str, str] = {}
            while line.strip(b"\r\n"):
                left -= len(line)
                if left < 0:
                    raise NotAnswered
                line = await reader.readuntil(b"\n")
                name, _, value = line.decode("latin-1").partition(":")
                headers.setdefault(name.lower(), value.strip())
            status = int(match[1])
            if status >= 200 or status == _SWITCHING:
                return Answer(status, headers)
    except (OSError, EOFError, asyncio.LimitOverrunError) as error:
        raise NotAnswered from error


async def _linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads on until the other side has ended its part, so that closing is no reset."""
    size = 0
    try:
        async with asyncio.timeout(_LINGER_S):
            while size < _LINGER_BYTES and (piece := await reader.read(_LINGER_BYTES)):
                size += len(piece)
            if size < _LINGER_BYTES:
                writer.close()
                await writer.wait_closed()
    except (OSError, TimeoutError):
        pass
