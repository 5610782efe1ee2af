"""Cells: whose keys lie together, that names on one node are as they were, and that what spans two slots is found."""

from __future__ import annotations

import hashlib
import uuid
from collections import Counter
from typing import Any

import pytest

from shared.store.cluster.cells import Cells, tags
from shared.store.cluster.slots import SLOTS, declared, keys_of, slot_of
from shared.store.keys import Keys
from shared.store.redis import ArqRedis
from tests.harness.fake_store import fake_client
from tests.support.slots import OtherSlot, SlotChecker, check_slots

ID = "chatcmpl-0123456789abcdef0123456789abcd07"


@pytest.mark.parametrize(
    ("name", "slot"),
    [
        (b"123456789", 0x31C3 % SLOTS),  # the example of the cluster's specification
        (b"{user1000}.following", slot_of(b"user1000")),
        (b"foo{}{bar}", slot_of(b"foo{}{bar}")),
        (b"foo{{bar}}zap", slot_of(b"{bar")),
        (b"foo{bar}{zap}", slot_of(b"bar")),
    ],
)
def test_the_slot_of_a_key_is_that_of_its_first_braces(name: bytes, slot: int) -> None:
    assert slot_of(name) == slot


@pytest.mark.parametrize("count", [1, 2, 4, 64, 256])
def test_cells_are_spaced_evenly_and_each_node_has_as_many(count: int) -> None:
    slots = [slot_of(tag.encode()) for tag in tags(count)]
    assert all(abs(slot - (2 * at + 1) * SLOTS // (2 * count)) <= 8 for at, slot in enumerate(slots))
    for nodes in (3, 5):
        held = Counter(slot * nodes // SLOTS for slot in slots)
        assert max(held.values()) <= -(-count // nodes) + 1


def test_tags_are_for_good() -> None:
    """They are in the names of keys: others would not find what is there."""
    assert hashlib.sha256(" ".join(tags(64)).encode()).hexdigest()[:16] == "1e265ae9acdf86cd"
    assert tags(4) == ("00-836", "01-3040", "02-1792", "03-8")


def test_on_one_node_names_are_as_they_were() -> None:
    keys = Keys()
    assert (keys.log(ID), keys.open(0), keys.unsettled(0)) == (
        f"streamspool:{{{ID}}}:log",
        "streamspool:open",
        "streamspool:unsettled",
    )
    assert (keys.index("a", 0), keys.stored("a", 0), keys.sessions("a", 0)) == (
        "streamspool:index:a",
        "streamspool:stored:a",
        "streamspool:sessions:a",
    )
    assert keys.session("a", "s").head == "streamspool:session:{a:s}:head"
    assert (keys.events, keys.job("j"), keys.webhook("w")) == (
        "streamspool:events",
        "streamspool:job:j",
        "streamspool:{w}:webhook",
    )


def test_what_is_a_generations_is_in_its_cell_and_the_rest_in_the_control() -> None:
    keys = Keys(cells=Cells(4))
    assert keys.log(ID) == f"streamspool{{03-8}}:{{{ID}}}:log"
    of_it = {keys.log(ID), keys.settled(ID), keys.metadata(ID), keys.viewers(ID), keys.deleted(ID), keys.shares(ID)}
    of_it |= {keys.open(3), keys.unsettled(3), keys.index("a", 3), keys.stored("a", 3), keys.sessions("a", 3)}
    assert len({slot_of(name.encode()) for name in of_it}) == 1
    control = {value for value in vars(keys).values() if isinstance(value, str) and ":" in value}
    control |= {keys.job("j"), keys.limit("k", "s"), keys.blob("t", "d"), keys.charged(ID), keys.webhook(ID)}
    assert {slot_of(name.encode()) for name in control} == {slot_of(b"control")}


def test_a_turn_is_born_where_its_session_is() -> None:
    for count in (1, 4, 64):
        cells, keys = Cells(count), Keys(cells=Cells(count))
        for number in range(50):
            new_id = f"chatcmpl-{uuid.uuid4().hex}"
            born = cells.born(new_id, cells.of_session("ann", f"s{number}"))
            assert len(born) == len(new_id)
            assert born[:-2] == new_id[:-2]
            if count > 1:
                slots = {slot_of(name.encode()) for name in (*keys.session("ann", f"s{number}"), keys.log(born))}
                assert len(slots) == 1
            else:
                assert born == new_id


def test_ids_are_spread_evenly() -> None:
    cells = Cells(64)
    held = Counter(cells.of(f"chatcmpl-{number:032x}") for number in range(64 * 100))
    assert set(held.values()) == {100}


@pytest.mark.parametrize("count", [0, 3, 512])
def test_there_are_no_other_numbers_of_cells(count: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        Cells(count)


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (("SET", "a", "b"), [b"a"]),
        (("DEL", "a", b"b"), [b"a", b"b"]),
        (("MGET", "a", "b"), [b"a", b"b"]),
        (("EVALSHA", "f00", 2, "a", "b", "c"), [b"a", b"b"]),
        (("XREAD", "COUNT", 1, "STREAMS", "a", "b", "0", "1-1"), [b"a", b"b"]),
        (("PUBLISH", "channel", "x"), []),
        (("CONFIG GET", "save"), []),
        (("TIME",), []),
    ],
)
def test_which_keys_a_command_touches(words: tuple[Any, ...], keys: list[bytes]) -> None:
    assert keys_of(words) == keys
    assert declared([words, words]) == keys


@pytest.fixture
async def checked() -> ArqRedis:
    return check_slots(fake_client())


async def test_the_checker_finds_what_spans_two_slots(checked: ArqRedis) -> None:
    await checked.mget("{x}a", "{x}b")
    with pytest.raises(OtherSlot):
        await checked.mget("a", "b")


async def test_it_finds_transactions_and_what_they_watch(checked: ArqRedis) -> None:
    async with checked.pipeline(transaction=False) as pipe:
        pipe.set("a", 1)
        pipe.set("b", 1)
        await pipe.execute()
    with pytest.raises(OtherSlot):
        async with checked.pipeline(transaction=True) as pipe:
            pipe.set("a", 1)
            pipe.set("b", 1)
            await pipe.execute()
    with pytest.raises(OtherSlot):
        async with checked.pipeline(transaction=True) as pipe:
            await pipe.watch("a")
            pipe.multi()
            pipe.set("b", 1)
            await pipe.execute()


async def test_it_finds_scripts_that_no_cluster_would_know_where_to_do() -> None:
    checker = SlotChecker()
    checker.see(b"*4\r\n$4\r\nEVAL\r\n$8\r\nreturn 1\r\n$1\r\n1\r\n$1\r\na\r\n")
    with pytest.raises(AssertionError, match="declares no keys"):
        checker.see(b"*3\r\n$4\r\nEVAL\r\n$8\r\nreturn 1\r\n$1\r\n0\r\n")
