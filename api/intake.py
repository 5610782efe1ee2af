"""How much may come on a connection besides bodies, and what is said to more.

Hidden here: what a head (request line and header fields) weighs, the errors of one that is too large (431, RFC 6585 §5),
malformed, or one of too many, which host it is for, what it says without its offer of another protocol, and which offer of a
WebSocket is sound. connection.py counts and refuses.
"""

from __future__ import annotations

import binascii
import re
import uuid
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import httptools

from shared.errors import BadRequest, HeaderFieldsTooLarge, MethodNotAllowed, StreamspoolError
from shared.lib import json

HEAD_BYTES = 64 * 1024
"""What a request may have in front of its body, and once more around it and after it."""
HEAD_FIELDS = 100
"""Header fields, and once more trailers."""
PIPELINED = 512
"""Requests that may wait on one connection for the answers to those before them."""

SOCKET_FIELD_BYTES = 8000
"""A header field of a request that opens a WebSocket: the library that reads it again takes no longer lines than 8 KiB."""
SOCKET_VERSION = b"13"

_HOST = re.compile(
    rb"(?:\[[0-9A-Fa-f:.]+(?:%[\w\-.~%]+)?\]|(?:[\w\-.~!$&'()*+,;=]|%[0-9A-Fa-f]{2})*)(?::\d{0,5})?", re.ASCII
)
"""A name or an address, and perhaps a port (RFC 9110 §7.2, RFC 3986 §3.2.2). Empty, it says that the target has none. Clients
leave the zone of an address away (RFC 6874 §4); OpenAI's for Python does not."""

_FIELD_BYTES = len(": \r\n")
LINE_BYTES = len("GET  HTTP/1.1\r\n\r\n")


def weigh(fields: list[tuple[bytes, bytes]], line_bytes: int = 0) -> None:
    """Adds up what was taken for a head, or for trailers. Raises HeaderFieldsTooLarge."""
    size = line_bytes + sum(len(name) + len(value) + _FIELD_BYTES for name, value in fields)
    if size > HEAD_BYTES or len(fields) > HEAD_FIELDS:
        raise too_large()


def check_host(fields: list[tuple[bytes, bytes]], version: str) -> None:
    """A request names one host, or none in HTTP/1.0 (RFC 9112 §3.2), and it is one. Raises BadRequest."""
    host = None
    for name, value in fields:
        if name == b"host":
            if host is not None or not _HOST.fullmatch(value):
                raise _no_host()
            host = value
    if host is None and version != "1.0":
        raise _no_host()


def opens_socket(
    scope: dict[str, Any], url: bytes, fields: list[tuple[bytes, bytes]], known: Callable[[dict[str, Any]], bool]
) -> bool:
    """Whether a request goes on as a WebSocket: it offers to (RFC 6455 §4.1), and there is one, says `known`, at its path.
    HTTP/1.0 has no such offer (RFC 9110 §7.8). `scope` is what there is of it for ASGI. Raises BadRequest,
    HeaderFieldsTooLarge."""
    offers = [part.strip().lower() for name, value in fields if name == b"upgrade" for part in value.split(b",")]
    if scope["method"] != "GET" or scope["http_version"] == "1.0" or b"websocket" not in offers:
        return False
    path = httptools.parse_url(url).path
    if not known({**scope, "type": "websocket", "path": unquote(path.decode("ascii")), "raw_path": path}):
        return False
    check_handshake(fields)
    return True


def check_handshake(fields: list[tuple[bytes, bytes]]) -> None:
    """What an offer of a WebSocket has to say (RFC 6455 §4.2.1). Raises BadRequest, HeaderFieldsTooLarge."""
    if any(len(name) + len(value) > SOCKET_FIELD_BYTES for name, value in fields):
        raise HeaderFieldsTooLarge(
            f"A header field is over {SOCKET_FIELD_BYTES} bytes. What is long belongs into a message."
        )
    keys = [value for name, value in fields if name == b"sec-websocket-key"]
    versions = [value for name, value in fields if name == b"sec-websocket-version"]
    if versions != [SOCKET_VERSION]:
        raise BadRequest(
            f"Open a WebSocket with `Sec-WebSocket-Version: {SOCKET_VERSION.decode()}`.",
            code="invalid_handshake",
            status=426,
        )
    try:
        sound = len(keys) == 1 and len(binascii.a2b_base64(keys[0], strict_mode=True)) == 16
    except binascii.Error:
        sound = False
    if not sound:
        raise BadRequest("Send one Sec-WebSocket-Key: 16 bytes, in base64.", code="invalid_handshake")


def without_offer(method: str, url: bytes, version: str, fields: list[tuple[bytes, bytes]]) -> bytes:
    """The head of a request as it is without its `Upgrade`."""
    lines = [b"%b %b HTTP/%b" % (method.encode(), url, version.encode())]
    for name, value in fields:
        if name == b"connection":
            value = b", ".join(one for part in value.split(b",") if (one := part.strip()).lower() != b"upgrade")
        if name != b"upgrade" and (value or name != b"connection"):
            lines.append(b"%b: %b" % (name, value))
    return b"\r\n".join([*lines, b"", b""])


def refusal(error: StreamspoolError, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The response that ends a connection with this error; `fields` are header fields that all responses have."""
    body = json.dumps({"error": error.to_object()})
    headers = [
        *fields,
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
        (b"x-request-id", f"req_{uuid.uuid4().hex}".encode()),
    ]
    if error.status == HTTPStatus.UPGRADE_REQUIRED:
        headers.append((b"sec-websocket-version", SOCKET_VERSION))
    lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}".encode()]
    lines += [b"%b: %b" % field for field in headers]
    return b"\r\n".join([*lines, b"", body])


def _no_host() -> BadRequest:
    return BadRequest("Send one Host header with the name of this server. Nothing was done.", code="invalid_http")


def no_tunnel() -> MethodNotAllowed:
    return MethodNotAllowed("This is no proxy: CONNECT is not allowed here.")


def too_large() -> HeaderFieldsTooLarge:
    return HeaderFieldsTooLarge(
        f"The request line and header fields, or the trailers, are over the limit of {HEAD_BYTES} bytes or {HEAD_FIELDS} "
        "fields. Send fewer and shorter ones; what is long belongs into the body."
    )


def too_many() -> BadRequest:
    return BadRequest(
        f"More than {PIPELINED} requests wait on this connection. Read their answers before you ask on.",
        code="too_many_pipelined_requests",
    )


def malformed() -> BadRequest:
    return BadRequest("This is not a valid HTTP/1.1 request. Nothing was done.", code="invalid_http")
