"""A file in a form (multipart/form-data, RFC 7578), read piece by piece.

Hidden here: the parser is python-multipart's, which Starlette uses, too, but Starlette would first put the whole file
somewhere. Here its bytes are handed on as they come; the other fields, which may stand before it or after it, are short.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from shared.errors import BadRequest, TooLarge

_PIECE_S = 30.0
"""How long the next piece may take to arrive."""
_FIELDS = 16
_FIELD_BYTES = 4096
_OVERHEAD_BYTES = 64 * 1024
"""What a form may have around the file."""


class Upload:
    """`async for piece in upload` gives the bytes of the field `file`; then `filename` and `fields` are complete.

    Raises BadRequest for what is not such a form, TooLarge.
    """

    def __init__(self, request: Request, max_bytes: int) -> None:
        kind, options = parse_options_header(request.headers.get("content-type", ""))
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise BadRequest(
                "Send the file as multipart/form-data with the fields `file` and `purpose`.",
                param="content-type",
                status=415,
            )
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise BadRequest("Send the form without Content-Encoding.", param="content-encoding")
        length = request.headers.get("content-length", "")
        self._too_large = TooLarge(f"The file is over the limit of {max_bytes} bytes (STREAMSPOOL_MAX_FILE_BYTES).")
        if length.isdigit() and int(length) > max_bytes + _OVERHEAD_BYTES:
            raise self._too_large
        self.filename: str | None = None
        self.fields: dict[str, str] = {}
        self._request, self._left = request, max_bytes
        self._pieces: list[bytes] = []
        self._header: tuple[bytes, bytes] = (b"", b"")
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        self._value = bytearray()
        self._ended = False
        try:
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": lambda data, start, end: self._add_header(data[start:end], b""),
                    "on_header_value": lambda data, start, end: self._add_header(b"", data[start:end]),
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._begin_value,
                    "on_part_data": lambda data, start, end: self._add_value(data[start:end]),
                    "on_part_end": self._end_value,
                    "on_end": self._end,
                },
            )
        except FormParserError:
            raise BadRequest(
                "The boundary of the form is not valid: it may have 70 characters (RFC 2046).", param="content-type"
            ) from None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        stream = self._request.stream()
        try:
            while not self._ended:
                async with asyncio.timeout(_PIECE_S):
                    received = await anext(stream, b"")
                if not received:
                    raise BadRequest("The form ends before its last boundary.")
                self._parser.write(received)
                pieces, self._pieces = self._pieces, []
                for piece in pieces:
                    yield piece
        except FormParserError:
            raise BadRequest("The body is not valid multipart/form-data.") from None
        except ClientDisconnect:
            raise BadRequest("The client left before its request was complete.") from None
        except TimeoutError:
            raise BadRequest("The form did not arrive in time.", code="request_timeout", status=408) from None
        if self.filename is None:
            raise BadRequest("The form must have a field `file` with a file.", param="file")

    def _begin_part(self) -> None:
        self._headers, self._header = {}, (b"", b"")

    def _add_header(self, name: bytes, value: bytes) -> None:
        self._header = (self._header[0] + name, self._header[1] + value)

    def _end_header(self) -> None:
        name, value = self._header
        self._headers[name.lower()] = value
        self._header = (b"", b"")

    def _begin_value(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._value.clear()
        if self._name == "file":
            if self.filename is not None:
                raise BadRequest("The form has two files. Send one at a time.", param="file")
            if b"filename" not in options:
                raise BadRequest("The field `file` must be a file, with a filename.", param="file")
            self.filename = options[b"filename"].decode("utf-8", "replace")[:255] or "file"
        elif not self._name or self._name in self.fields or len(self.fields) >= _FIELDS:
            raise BadRequest("Each field of the form must have a name of its own.", param=self._name[:64] or None)

    def _add_value(self, data: bytes) -> None:
        if self._name == "file":
            self._left -= len(data)
            if self._left < 0:
                raise self._too_large
            self._pieces.append(data)
        else:
            self._value += data
            if len(self._value) > _FIELD_BYTES:
                raise BadRequest(f"The field {self._name[:64]} is too long.", param=self._name[:64])

    def _end_value(self) -> None:
        if self._name != "file":
            self.fields[self._name] = self._value.decode("utf-8", "replace")

    def _end(self) -> None:
        self._ended = True
