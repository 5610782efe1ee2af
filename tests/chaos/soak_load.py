"""What the soak asks for, what the provider says to it, and what nobody may have read.

A word says where it comes from, `g17.2.5 ` being the sixth word of the second call for generation 17. So any text can
be judged by itself: words of two calls are a splice, a missing number is a gap, a number again is a repetition.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.harness.shown import Shown
from tests.harness.upstream import DONE, RESET, USAGE, Answer, Part, Script, chunk, refusal

CANARY = "canary-prompt-4711"
_WORD = re.compile(r"g(\d+)\.(\d+)\.(\d+) ")

BEHAVIOURS = {
    "good": 70,
    "large": 3,
    "limited_once": 4,
    "limited": 2,
    "reset_once": 4,
    "broken": 2,
    "cut": 5,
    "rst": 3,
    "eof": 2,
    "stall": 2,
    "bad_json": 2,
    "forbidden": 1,
}
SESSION_SPAN = 20
"""Of so many generations in a row, some are turns of one session: few enough that the last can wait for all others."""
_ANSWERED = {"good", "large", "limited_once", "reset_once"}
_LOST = {"generation_interrupted", "worker_lost", "no_worker", "stream_lost"}
"""What an answer may end as because of the faults: with a worker's death, or that of a worker and Valkey together."""


@dataclass
class Generation:
    """One thing asked for: how, how often, and what all who watched it have read."""

    number: int
    behaviour: str
    words: int
    gap_s: float
    policy: str
    key: str | None
    posts: int
    late: int
    ids: bool
    cancel_after: float | None
    leaves: bool
    random: float
    session: str | None
    background: bool
    id: str | None = None
    state: dict[str, Any] = field(default_factory=dict)
    """What it ended as, once it was judged."""
    text: str = ""
    plan: Script | None = None
    started: float = field(default_factory=time.monotonic)
    accepted: asyncio.Event = field(default_factory=asyncio.Event)
    readings: list[Shown] = field(default_factory=list)
    cuts: list[Shown] = field(default_factory=list)

    @classmethod
    def draw(cls, number: int, chance: Random) -> Generation:
        keyed, background = chance.random() < 0.5, chance.random() < 0.1
        return cls(
            number=number,
            behaviour=chance.choices(list(BEHAVIOURS), list(BEHAVIOURS.values()))[0],
            words=chance.randint(1, 60),
            gap_s=chance.choice([0, 0.005, 0.05, 0.2]),
            policy=chance.choice(["fail", "restart"]),
            key=f"key-{number}-{chance.random()}" if keyed else None,
            posts=chance.choice([1, 1, 3]) if keyed else 1,
            late=chance.choice([0, 1, 1, 2, 4]),
            ids=chance.random() < 0.5,
            cancel_after=chance.uniform(0, 3) if chance.random() < 0.1 else None,
            leaves=chance.random() < 0.05 and not background,
            random=chance.random(),
            session=f"soak-{number // SESSION_SPAN}" if chance.random() < 0.2 else None,
            background=background,
        )

    @property
    def tag(self) -> str:
        return f"g{self.number}"

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"{CANARY} {self.tag}"}]

    def body(self) -> bytes:
        asked = {
            "model": f"scripted/{self.tag}",
            "stream": not self.background,
            "background": self.background,
            "messages": self.messages,
            "on_interruption": self.policy,
            "on_disconnect": "cancel" if self.leaves else "continue",
        }
        if self.session:
            asked |= {"session_id": self.session, "session_policy": "enqueue"}
        return json.dumps(asked).encode()

    def describe(self) -> dict[str, Any]:
        shown = (
            "id",
            "tag",
            "behaviour",
            "words",
            "gap_s",
            "policy",
            "key",
            "posts",
            "late",
            "cancel_after",
            "leaves",
            "session",
            "background",
        )
        readings = [
            {"native": r.native, "end": r.terminal, "text": r.text[-60:], "last": r.last_id, "resumes": r.resumes}
            for r in (*self.readings, *self.cuts)
        ]
        calls = len(self.plan.calls) if self.plan else None
        return {**{name: getattr(self, name) for name in shown}, "calls": calls, "readings": readings}

    def call_problems(self, state: dict[str, Any], withdrawn: int) -> list[str]:
        """The provider is asked once an attempt, and again only where it refused before the first chunk.

        And perhaps for as many others that were withdrawn.
        """
        assert self.plan
        calls, attempts = len(self.plan.calls), state.get("attempts") or 0
        again = 3 if self.behaviour in ("limited_once", "limited", "reset_once", "broken", "cut", "rst") else 1
        wrong = []
        if calls > attempts * again + withdrawn * 3:
            wrong.append(f"{calls} calls in {attempts} attempts")
        code = (state.get("error") or {}).get("code")
        untouched = self.behaviour in _ANSWERED and self.cancel_after is None and not self.leaves
        if untouched and state["status"] != "completed" and code not in _LOST:
            wrong.append("an answer that was there was not given")
        if self.behaviour not in _ANSWERED and state["status"] == "completed":
            wrong.append("an answer that was not there was given")
        return wrong


def plan_of(made: Generation) -> Callable[[int], Answer]:
    """What the provider answers to each call for this generation."""

    def say(call: int) -> Answer:
        said: list[Part] = [chunk({"role": "assistant", "content": ""})]
        for i in range(made.words):
            fields: dict[str, Any] = {"padding": "x" * 100_000} if made.behaviour == "large" else {}
            said += [chunk({"content": f"g{made.number}.{call}.{i} "}, **fields), made.gap_s]
        half = said[: 1 + 2 * max(1, made.words // 2)]
        if made.behaviour in ("cut", "rst", "eof"):
            return Answer(half, end=made.behaviour)  # type: ignore[arg-type]
        if made.behaviour == "stall":
            pings: list[Part] = [b": ping\n\n", 1.0]
            return Answer([*half, *pings * 60])
        if made.behaviour == "bad_json":
            return Answer([*half, b"data: {nonsense\n\n", *said])
        return Answer([*said, chunk({}, "stop"), USAGE, DONE])

    def answer(call: int) -> Answer:
        first = call == 1
        if made.behaviour == "limited" or (made.behaviour == "limited_once" and first):
            return refusal(429, "rate_limit", **{"retry-after": "1"})
        if made.behaviour == "broken":
            return refusal(500)
        if made.behaviour == "forbidden":
            return refusal(403)
        return RESET if made.behaviour == "reset_once" and first else say(call)

    return answer


def text_problems(made: Generation, state: dict[str, Any], answer: dict[str, Any]) -> list[str]:
    """What is wrong with what the viewers read, by itself and beside what is stored."""
    stored = "".join(choice["message"]["content"] or "" for choice in answer["choices"])
    whole = state["status"] == "completed"
    expected = (state.get("error") or {}).get("code") or "done"
    problems = _in_order(made, stored, whole=whole)
    for reading in (*made.readings, *made.cuts):
        problems += reading.wrong
        problems += _in_order(made, reading.text, whole=reading.terminal == "done")
        if reading.terminal is None:
            continue
        replaced = not reading.native and reading.terminal == "generation_interrupted" and state["attempts"] > 1
        if replaced:
            continue  # a client that knows nothing of attempts was told so, whatever the next one says
        if reading.terminal != expected:
            problems.append(f"a viewer saw the end {reading.terminal!r}, the log has {expected!r}")
        if reading.text != stored and (whole or reading.position or reading.count):
            problems.append(f"a viewer read {reading.text[-40:]!r}, stored is {stored[-40:]!r}")
    return problems


def session_problems(made: list[Generation], messages: list[dict[str, Any]]) -> list[str]:
    """What is wrong with a session, given everything that was asked in it, answered or not.

    Its turns are its completed generations, whole and once; and each was asked with exactly the turns before its own,
    which gives them one order. One whose id was lost with its connection may have a turn or none.
    """
    pairs = [messages[i : i + 2] for i in range(0, len(messages), 2)]
    turns = [[{"role": said["role"], "content": said.get("content")} for said in pair] for pair in pairs]
    if any(len(pair) != 2 or pair[0]["generation_id"] != pair[1]["generation_id"] for pair in pairs):
        return ["half a turn"]
    wrong, unclaimed = [], set(range(len(turns)))
    for one in made:
        places = [place for place, turn in enumerate(turns) if turn[0]["content"] == one.messages[0]["content"]]
        unclaimed.difference_update(places)
        if len(places) > 1 or (one.id and bool(places) != (one.state.get("status") == "completed")):
            wrong.append(f"{one.tag} is {one.state.get('status')} and has {len(places)} turns")
        for place in places:
            answer = turns[place][1]
            wrong += _in_order(one, answer["content"] or "", whole=True)
            if one.id and (pairs[place][0]["generation_id"], answer["content"]) != (one.id, one.text):
                wrong.append(f"the turn of {one.tag} is not what was said")
        ends = places or range(len(turns) + 1)
        shown = [[*(said for turn in turns[:end] for said in turn), *one.messages] for end in ends]
        if any(call["messages"] not in shown for call in (one.plan.calls if one.plan else ())):
            wrong.append(f"{one.tag} was asked with other turns than those before it")
    return [*wrong, *(f"a turn of nobody: {pairs[place]}" for place in unclaimed)]


def _in_order(made: Generation, text: str, *, whole: bool) -> list[str]:
    found = [tuple(map(int, match)) for match in _WORD.findall(text)]
    if len(_WORD.sub("", text)):
        return [f"damaged words: {_WORD.sub('', text)[:60]!r}"]
    if len({call for _, call, _ in found}) > 1:
        return ["two attempts in one text"]
    if [i for *_, i in found] != list(range(len(found))) or any(number != made.number for number, *_ in found):
        return [f"a gap or a repetition: {text[-80:]!r}"]
    return [f"{len(found)} of {made.words} words passed off as whole"] if whole and len(found) != made.words else []
