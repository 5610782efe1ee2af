"""How much may come on a connection besides bodies, and what is said to more.

Hidden here: what a head (request line and header fields) weighs, and the errors of one that is too large (431, RFC 6585
§5), malformed, or one of too many. connection.py counts and refuses.
"""

from __future__ import annotations

from shared.errors import BadRequest, HeaderFieldsTooLarge

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
