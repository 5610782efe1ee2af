"""JSON as providers send it, and as clients may: fast where possible, nothing lost where not."""

from __future__ import annotations

import ctypes
import json as standard
import math
import mmap
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.lib import json

TEXT = st.text(st.characters(codec=None), max_size=20)  # lone surrogates included
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)


@given(VALUES)
def test_whatever_is_json_survives(value: Any) -> None:
    """Any integer, any string: what comes out is what went in, whoever reads it."""
    written = json.dumps(value)
    assert json.loads(written) == value
    assert standard.loads(written) == value
    assert not set(written) & set(b"\r\n\0")


@given(VALUES)
def test_what_the_standard_library_writes_is_read(value: Any) -> None:
    for ascii_only in (True, False):
        text = standard.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
        try:
            text.decode()
        except UnicodeDecodeError:
            with pytest.raises(ValueError, match=r"."):
                json.loads(text)
        else:
            assert json.loads(text) == value


@pytest.mark.parametrize("integer", [2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**18, 10**19, -(10**30), 10**300])
def test_integers_stay_integers(integer: int) -> None:
    for text in (b"%d", b"[%d]", b'{"a":%d}', b'{"a": %d }', b"[1,%d,2]"):
        read = json.loads(text % integer)
        assert str(integer) in str(read)
        assert json.loads(json.dumps(read)) == read


@pytest.mark.parametrize(
    "text",
    [b"1234567890123456789.5", b"0.1234567890123456789", b"1e19", b"1.5E+300", b'"12345678901234567890"', b"-0.0"],
)
def test_what_looks_like_a_big_integer_is_read_as_what_it_is(text: bytes) -> None:
    assert json.loads(text) == standard.loads(text)
    assert type(json.loads(text)) is type(standard.loads(text))


def test_half_an_emoji_is_kept() -> None:
    value = json.loads(rb'{"a": "x\ud83d"}')
    assert value == {"a": "x\ud83d"}
    assert json.dumps(value) == rb'{"a":"x\ud83d"}'


def test_two_halves_make_a_whole() -> None:
    joined = json.loads(rb'"\ud83d"') + json.loads(rb'"\ude00"')
    assert standard.loads(json.dumps({"a": joined})) == {"a": "\U0001f600"}


def test_line_separators_are_text() -> None:
    assert json.loads('"a\u2028b\u2029c"'.encode()) == "a\u2028b\u2029c"
    assert json.dumps("a\u2028b").decode() == '"a\u2028b"'


@pytest.mark.parametrize("word", [b"NaN", b"Infinity", b"-Infinity"])
def test_what_is_not_a_number_is_null_from_a_provider_and_refused_from_a_client(word: bytes) -> None:
    assert json.loads(b'{"a": %b}' % word) == {"a": None}
    with pytest.raises(ValueError, match=r"."):
        json.loads_strict(b'{"a": %b}' % word)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_is_never_written(number: float) -> None:
    assert standard.loads(json.dumps([number])) == [None]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"{",
        b"[1,]",
        b"{'a':1}",
        b'"a\nb"',
        b"\xff",
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b"[1] [2]",
        b"tru",
        b"\xef\xbb\xbf1x",
    ],
)
@pytest.mark.parametrize("loads", [json.loads, json.loads_strict])
def test_what_is_not_json_is_a_value_error(loads: Any, text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        loads(text)


@pytest.mark.parametrize("loads", [json.loads, json.loads_strict])
@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000]
)
def test_a_nesting_without_end_is_a_value_error(loads: Any, text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        loads(text)


def test_a_client_may_not_send_lone_surrogates() -> None:
    with pytest.raises(ValueError, match=r"."):
        json.loads_strict(rb'"\ud83d"')


@pytest.mark.parametrize("depth", [10, 100, 199, 200])
def test_what_can_be_read_from_a_client_can_be_written_to_a_provider(depth: int) -> None:
    text = b"[" * depth + b"]" * depth
    assert json.dumps(json.loads_strict(text)) == text


def test_what_cannot_be_written_is_a_value_error_or_a_type_error() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match=r"."):
        json.dumps(deep)
    with pytest.raises(TypeError):
        json.dumps(object())


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_usable_size"), reason="glibc's")
@pytest.mark.parametrize("write", [json.dumps, json.dumps_sorted])
@pytest.mark.parametrize("size", [2000, 100_000, 1_000_000])
def test_what_is_written_takes_as_much_memory_as_it_needs(write: Callable[[Any], bytes], size: int) -> None:
    """orjson's own result is kept in up to ten times as much."""
    usable = ctypes.CDLL(None).malloc_usable_size
    usable.argtypes, usable.restype = [ctypes.c_void_p], ctypes.c_size_t
    text = write({"content": "x" * size})
    pages = mmap.PAGESIZE if size > 128 * 1024 else 0  # of what is large, if the heap has no room for it: mallopt(3)
    assert usable(id(text)) < len(text) + 200 + pages
