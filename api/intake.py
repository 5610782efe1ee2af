"""How much may come on a connection besides bodies, and what is said to more.

Hidden here: what a head (request line and header fields) weighs, the errors of one that is too large (431, RFC 6585 §5),
malformed, or one of too many, which host it is for, and what it says without its offer of another protocol. connection.py
counts and refuses.
"""

from __future__ import annotations

from shared.errors import BadRequest, HeaderFieldsTooLarge, MethodNotAllowed

HEAD_BYTES = 64 * 1024
"""What a request may have in front of its body, and once more around it and after it."""
HEAD_FIELDS = 100
"""Header fields, and once more trailers."""
PIPELINED = 512
"""Requests that may wait on one connection for the answers to those before them."""

_FIELD_BYTES = len(": \r\n")
LINE_BYTES = len("GET  HTTP/1.1\r\n\r\n")


def weigh(fields: list[tuple[bytes, bytes]], line_bytes: int = 0) -> None:
    """Adds up what was taken for a head, or for trailers. Raises HeaderFieldsTooLarge."""
    size = line_bytes + sum(len(name) + len(value) + _FIELD_BYTES for name, value in fields)
    if size > HEAD_BYTES or len(fields) > HEAD_FIELDS:
        raise too_large()


def check_host(fields: list[tuple[bytes, bytes]], version: str) -> None:
    """A request names one host, or none in HTTP/1.0 (RFC 9112 §3.2). Raises BadRequest."""
    hosts = sum(name == b"host" for name, _ in fields)
    if hosts > 1 or not (hosts or version == "1.0"):
        raise BadRequest("Send one Host header with the name of this server. Nothing was done.", code="invalid_http")


def without_offer(method: str, url: bytes, version: str, fields: list[tuple[bytes, bytes]]) -> bytes:
    """The head of a request as it is without its `Upgrade`."""
    lines = [b"%b %b HTTP/%b" % (method.encode(), url, version.encode())]
    for name, value in fields:
        if name == b"connection":
            value = b", ".join(one for part in value.split(b",") if (one := part.strip()).lower() != b"upgrade")
        if name != b"upgrade" and (value or name != b"connection"):
            lines.append(b"%b: %b" % (name, value))
    return b"\r\n".join([*lines, b"", b""])


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
