"""What one viewer of a stream was shown, and what no viewer must ever see.

Hidden here: what frames add up to, and the rules of a stream: ids rise by one, an attempt begins at its first chunk, a
choice finishes once, there is one end and nothing after it. All viewers of the tests add up with this, however they read.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

SEAL = (9007199254740991, 0)
"""The position of a log's last entry, its outcome."""


@dataclass
class Shown:
    """`feed` takes frames, with or without their blank line. Times are of the monotonic clock.

    `wrong` says in words what must not be; `repeated` and `missing` count the chunks behind it.
    """

    native: bool = True
    """Whether it reads the log's own view, where a new attempt replaces the old one, or an answer in OpenAI's words."""
    said: list[str] = field(default_factory=list)
    first_text: str = ""
    """What was said before a newer attempt made it void."""
    count: int = 0
    """Chunks of the newest attempt."""
    attempts: list[int] = field(default_factory=list)
    finish: list[str] = field(default_factory=list)
    error: dict[str, Any] | None = None
    ended: bool = False
    last_id: str | None = None
    position: tuple[int, int] = (0, 0)
    resumes: int = 0
    """How often it came back."""
    keepalives: int = 0
    wrong: list[str] = field(default_factory=list)
    repeated: int = 0
    missing: int = 0
    last_at: float = 0.0
    max_gap_s: float = 0.0
    """The longest time without a new frame; comments are none."""
    marker_at: float = 0.0
    ended_at: float = 0.0
    _finished: set[int] = field(default_factory=set)

    @property
    def text(self) -> str:
        self.said = ["".join(self.said)]  # added to one by one, a long text would be copied each time
        return self.said[0]

    def says(self, wanted: str) -> bool:
        return wanted in self.text

    @property
    def code(self) -> str | None:
        """That of the error it ended with."""
        return (self.error["code"] or self.error["type"]) if self.error else None

    @property
    def terminal(self) -> str | None:
        """`done`, the code of the error it ended with, or None while it has not."""
        return (self.code or "done") if self.ended else None

    def feed(self, frame: bytes) -> None:
        fields: dict[str, str] = {}
        for line in frame.decode().split("\n"):
            if line.startswith(":"):
                self.keepalives += 1
            elif line:
                name, _, value = line.partition(": ")
                fields[name] = value
        if "data" not in fields:
            return
        now = time.monotonic()
        self.max_gap_s = max(self.max_gap_s, now - self.last_at if self.last_at else 0.0)
        self.last_at = now
        if self.ended:
            self.wrong.append(f"after the end: {frame[:80]!r}")
        if "id" in fields:
            self._move(fields["id"])
        self._data(fields["data"], fields.get("event"))

    def _data(self, data: str, event: str | None) -> None:
        if data == "[DONE]":
            self.ended, self.ended_at = True, time.monotonic()
        elif event == "attempt":
            self.attempts.append(json.loads(data)["attempt"])
            self.first_text, self.marker_at = self.text, time.monotonic()
            self.said, self.count, self.finish, self._finished = [], 0, [], set()
        elif "error" in (shown := json.loads(data)):
            if self.error is not None:
                self.wrong.append("two errors")
            self.error = shown["error"]
        else:
            self._chunk(shown)

    def _chunk(self, shown: dict[str, Any]) -> None:
        self.count += 1
        for choice in shown["choices"]:
            self.said.append(choice["delta"].get("content") or "")
            if choice["finish_reason"]:
                if choice["index"] in self._finished:
                    self.wrong.append("two finish reasons")
                self._finished.add(choice["index"])
                self.finish.append(choice["finish_reason"])

    def _move(self, text: str) -> None:
        epoch, _, seq = text.partition("-")
        new, old = (int(epoch), int(seq)), self.position
        # An error and the [DONE] after it are one entry of the log.
        if new <= old and not (new == SEAL and self.error):
            self.wrong.append(f"id {text} after {self.last_id}")
            self.repeated += 1
        elif new != SEAL and new[0] == old[0] and new[1] != old[1] + 1:
            self.wrong.append(f"gap: id {text} after {self.last_id}")
            self.missing += new[1] - old[1] - 1
        elif new != SEAL and new[0] != old[0] and new[1] not in (0, 1):
            self.wrong.append(f"attempt begins at {text}")
            self.missing += new[1] - 1
        self.last_id, self.position = text, new
