"""One write to many connections, some of which cannot take it, and how long the next one waits."""

from __future__ import annotations

from typing import Any

import pytest

from api.live.direct import DirectWriter, rest_s, write_all


class Connection:
    """As a transport: takes what is written, keeps it for later, or refuses it, as uvloop does where it is closed."""

    def __init__(self, kind: str) -> None:
        self.kind, self.taken = kind, b""

    def write(self, data: bytes) -> None:
        if self.kind == "closed":
            raise RuntimeError("unable to perform operation; the handler is closed")
        self.taken += data

    def get_write_buffer_size(self) -> int:
        return len(self.taken) if self.kind == "slow" else 0


@pytest.mark.parametrize(
    "kinds",
    [
        [],
        ["open"] * 3,
        ["closed"],
        ["closed", "closed"],
        ["closed", "open", "slow", "closed", "open", "closed"],
        ["slow", "closed", "open"],
        ["open", "slow"],
    ],
    ids=",".join,
)
def test_who_cannot_take_it_is_found_and_all_others_have_it(kinds: list[str]) -> None:
    lanes: dict[DirectWriter, Any] = {}
    for kind in kinds:
        connection: Any = Connection(kind)
        lanes[DirectWriter(bytes, connection, b"", 0.0)] = connection  # type: ignore[arg-type]
    behind = write_all(lanes, b"data")
    assert behind == [writer for writer, connection in lanes.items() if connection.kind != "open"]
    assert [one.taken for one in lanes.values()] == [b"" if kind == "closed" else b"data" for kind in kinds]


@pytest.mark.parametrize(
    ("took_ms", "rest_ms"), [(0, 0), (0.01, 0.05), (3, 15), (6, 30), (9, 27), (11, 23), (12, 24), (20, 32), (100, 112)]
)
def test_many_viewers_are_written_to_less_often_but_half_of_them_have_it_soon(took_ms: float, rest_ms: float) -> None:
    assert rest_s(took_ms / 1000) == pytest.approx(rest_ms / 1000)
    if took_ms <= 10:
        assert rest_ms / 2 + took_ms <= 22.5
    assert took_ms <= rest_ms  # half of the loop is for others
