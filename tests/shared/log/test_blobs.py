"""What is taken out of a payload, byte for byte: whatever is cut can be put back, and what is left is JSON."""

from __future__ import annotations

import base64
import hashlib
import json
import random
from typing import Any

import pytest

from shared.log.blobs import INLINE_BYTES, Cut, Mark, Marks, Name, Stored, fill, parse

MARKS = Marks()


def picture(size: int, seed: int = 1) -> str:
    return base64.b64encode(random.Random(seed).randbytes(size)).decode()


def asked(*parts: dict[str, Any], text: str = "What is it?") -> bytes:
    content = [{"type": "text", "text": text}, *parts]
    return json.dumps({"model": "a/b", "messages": [{"role": "user", "content": content}]}).encode()


def image(data: str, media_type: str = "image/png") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:{media_type};base64,{data}"}}


def put_back(cut: Cut) -> bytes:
    """By the way through an entry."""
    copies = {hole.name.digest: "0000000a" for hole in cut.blobs}
    stored = cut.stored(copies)
    holes, rest = parse(stored)
    contents = {
        Name(hole.name.digest, "0000000a"): bytes(hole.content) for hole in cut.blobs if hole.content is not None
    }
    return fill(contents[rest.name] if rest else stored.data, holes, contents)


def test_what_is_small_stays() -> None:
    body = asked(image(picture(1000)))
    assert MARKS.cut(body) == Cut(body, body)
    assert MARKS.cut(body).stored({}) == Stored(body)


@pytest.mark.parametrize(
    "part",
    [
        image(picture(300_000)),
        image(picture(300_000), "IMAGE/jpeg;charset=x"),
        {"type": "input_audio", "input_audio": {"format": "wav", "data": picture(300_000)}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{picture(300_000)}"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": picture(300_000)}},
    ],
)
def test_base64_is_taken_out_and_its_digest_names_it(part: dict[str, Any]) -> None:
    body = asked(part, image(picture(20_000, seed=2)))
    cut = MARKS.cut(body)
    assert put_back(cut) == body
    assert len(cut.stored({hole.name.digest: "0000000a" for hole in cut.blobs}).data) < 1000
    first, second = cut.holes
    assert first.content is not None
    assert first.name.digest == hashlib.sha256(first.content).hexdigest()
    assert bytes(first.content) == picture(300_000).encode()
    assert bytes(second.content or b"") == picture(20_000, seed=2).encode()
    assert json.loads(cut.data)  # what is left is JSON with empty strings
    assert len(cut.text) < 1500


@pytest.mark.parametrize("size", [5, 300, 1200])
def test_a_long_text_goes_as_a_whole_and_marks_are_not_in_it(size: int) -> None:
    body = asked(image(picture(200_000)), text='a "quoted" \\ line\n' * size * 20)
    cut = MARKS.cut(body)
    assert put_back(cut) == body
    assert (cut.rest is not None) == (size > 5)
    assert json.loads(cut.text)["messages"][0]["content"][0] == json.loads(body)["messages"][0]["content"][0]


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": "data:image/png;base64,' + b"A" * 300_000 + b'", "b": [' + b"1," * 200_000 + b"1]}",
        b'{"a": "x \\"data:image/png;base64,' + b"A" * 300_000 + b'\\" y"}',
        b'{"a": "x \\"data:image/png;base64,' + b"A" * 300_000 + b'\\\\\\" y"}',
        b'{"a": "data:image/png;base64,' + b"A" * 300_000,
        b'{"data"  :\n"' + b"A" * 300_000 + b'"}',
        b'"' * 300_000,
        b"A" * 300_000,
        "é".encode() * 200_000,
        b'{"data":"' + b"A" * 300_000 + b'\xff"}',
        b'{"data":"' + b"A" * 300_000 + b'\n"}',
    ],
)
def test_any_bytes_come_back(body: bytes) -> None:
    cut = MARKS.cut(body)
    assert put_back(cut) == body
    try:
        value = json.loads(body)
    except ValueError:
        with pytest.raises(ValueError, match="."):
            json.loads(cut.text)
    else:
        assert json.loads(b"".join(_words(cut))) == value


def _words(cut: Cut) -> list[bytes]:
    content = {hole.name.digest: bytes(hole.content or b"") for hole in cut.holes}
    return [content[one.name.digest] if isinstance(one, Mark) else one for one in MARKS.split(cut.text)]


def test_a_text_stays_to_be_read() -> None:
    """Anthropic's format says the text of a text file; a mark would say nothing."""
    body = asked(image(picture(300_000), "text/plain"))
    cut = MARKS.cut(body)
    assert (cut.holes, cut.text) == ([], body)
    assert put_back(cut) == body


def test_escaped_slashes_do_not_keep_a_picture_in() -> None:
    """PHP writes them; the same picture is the same blob, however it is written."""
    plain = asked(image(picture(300_000)), text='a\\/b "c" \\\\/')
    escaped = plain.replace(b"/", b"\\/")
    assert json.loads(escaped) == json.loads(plain)
    first, second = MARKS.cut(plain), MARKS.cut(escaped)
    assert [hole.name for hole in first.holes] == [hole.name for hole in second.holes]
    assert json.loads(put_back(second)) == json.loads(plain)


def test_the_largest_are_taken_out_of_very_many() -> None:
    body = asked(*(image(picture(15_000 + 100 * n, seed=n)) for n in range(300)))
    cut = MARKS.cut(body)
    assert len(cut.holes) == 256
    assert put_back(cut) == body
    entry = cut.stored({hole.name.digest: "0000000a" for hole in cut.blobs})
    assert len(entry.data) + len(entry.blobs or b"") < 64 * 1024


def test_a_text_with_marks_is_cut_to_the_same_names_and_to_new_ones() -> None:
    """As a turn of a session: the request's parts by their names, the answer's as they are."""
    first = MARKS.cut(asked(image(picture(300_000)), image(picture(50_000, seed=2))))
    known = [Name(hole.name.digest, "0000000b") for hole in first.holes]
    text = MARKS.marked(first.data, [hole._replace(name=name) for hole, name in zip(first.holes, known, strict=True)])
    answer = asked(image(picture(400_000, seed=3)))
    for turn, new in ((b"[%b]" % text, 0), (b"[%b,%b]" % (text, answer), 1), (b"[%b,%b]" % (answer, text), 1)):
        cut = MARKS.cut(turn)
        assert sorted(hole.name for hole in cut.holes if hole.content is None) == sorted(known)
        assert sum(hole.content is not None for hole in cut.holes) == new
        assert MARKS.marked(cut.data, cut.holes).count(b"base64,") == 2 + new
        assert json.loads(cut.text)
        holes, _ = parse(cut.stored({hole.name.digest: "0000000a" for hole in cut.blobs}))
        contents = {hole.name: b"<%b>" % hole.name.digest[:4].encode() for hole in holes}
        filled = fill(cut.data, holes, contents)
        for hole in holes:
            assert b"base64,<%b>" % hole.name.digest[:4].encode() in filled


def test_the_digest_of_a_text_is_that_without_marks() -> None:
    body = asked(image(picture(300_000)))
    cut = MARKS.cut(body)
    value = json.loads(cut.text)
    text = json.dumps(value, sort_keys=True).encode()
    plain = json.dumps(json.loads(body), sort_keys=True).encode()
    assert text != plain
    assert cut.digest(text, MARKS) == hashlib.sha256(plain).hexdigest()


def test_a_mark_is_base64_and_no_other_process_has_it() -> None:
    mark = MARKS.write(Name("a" * 64, "0" * 8), 12)
    assert base64.b64decode(mark, validate=True)
    assert MARKS.are_in(mark)
    assert not Marks().are_in(mark)
    assert list(Marks().split(mark)) == [mark]


def test_a_payload_of_nothing_but_quotes_is_quickly_looked_through() -> None:
    """What it takes does not grow with the square of it: a body is whatever a client sends."""
    assert len(MARKS.cut(b'"' * INLINE_BYTES * 4).holes) == 0
