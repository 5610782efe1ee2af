"""One of everything that is promised, and whether it was kept: streams that are watched, turns of sessions, answers in the
background, and a batch. Each must come out whole, or be told as lost; half of one must never pass for an answer.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from tests.harness.processes import wait_until
from tests.harness.upstream import chunk, ending, whole, words
from tests.support import batch
from tests.support.rig import Rig, Viewer

CHUNKS, PAUSE_S = 80, 0.05
TEXT = whole(CHUNKS) + "the end"
TERMINAL = {"completed", "incomplete", "failed", "cancelled"}
PATIENCE_S = 90


class Promises:
    """All of them, begun; `judged` waits for their ends and counts them."""

    def __init__(self, rig: Rig, *, streams: int = 6, sessions: int = 4, background: int = 4, lines: int = 12) -> None:
        self._rig = rig
        self._http = httpx.Client(base_url=rig.stack.url, timeout=60, trust_env=False)
        role, *said = words(CHUNKS)
        parts: list[bytes | float] = [role]
        for piece in said:
            parts += [piece, PAUSE_S]
        parts += [chunk({"content": "the end"}), *ending()]
        self.script = rig.upstream.script("promised", parts)
        content = batch.jsonl(batch.line(f"line-{number}", "scripted/promised") for number in range(lines))
        self._lines, self._batch = lines, self._start(content)
        self.sessions = [f"talk-{number}" for number in range(sessions)]
        with ThreadPoolExecutor() as threads:
            turns = [threads.submit(self._accept, session_id=name, background=True) for name in self.sessions]
            others = [threads.submit(self._accept, background=True) for _ in range(background)]
            self._turns, self._background = ([one.result() for one in some] for some in (turns, others))
        viewers = (Viewer(model="scripted/promised", expected=TEXT, script=self.script) for _ in range(streams))
        self.viewers = [rig.view(viewer) for viewer in viewers]

    def _start(self, content: bytes) -> str:
        """As below: a file and a batch are confirmed, too."""

        def started() -> str | None:
            file = self._http.post("/v1/files", files={"file": ("in.jsonl", content)}, data={"purpose": "batch"})
            if file.status_code == 503:
                return None
            asked = {"input_file_id": file.json()["id"], "endpoint": batch.ENDPOINT, "completion_window": "24h"}
            response = self._http.post("/v1/batches", json=asked)
            assert response.status_code in (200, 503), response.text
            return str(response.json()["id"]) if response.status_code == 200 else None

        found: str = wait_until(started, 60, "the batch is accepted")
        return found

    def _accept(self, **fields: Any) -> str:
        """Accepted at last: with a slow disk it takes long to be confirmed, and a session is busy until what was refused is
        withdrawn."""
        body = {"model": "scripted/promised", "messages": [{"role": "user", "content": "x"}], **fields}

        def accepted() -> httpx.Response | None:
            response = self._http.post("/v1/chat/completions", json=body)
            assert response.status_code in (202, 409, 503), response.text
            return response if response.status_code == 202 else None

        response: httpx.Response = wait_until(accepted, 60, "it is accepted")
        return str(response.headers["x-stream-id"])

    def until_in_the_middle(self) -> None:
        wait_until(lambda: all(viewer.says("w20 ") for viewer in self.viewers), what="all streams speak")

    def judged(self) -> dict[str, Any]:
        """How many were whole and how many told as lost; `wrong` is what was neither."""
        counts: Counter[str] = Counter()
        wrong = [problem for viewer in self.viewers if (problem := self._judge_viewer(viewer, counts))]
        for kind, ids in (("session", self._turns), ("background", self._background)):
            wrong += [f"{kind}: {problem}" for one in ids if (problem := self._judge_stored(kind, one, counts))]
        wrong += [problem for name in self.sessions if (problem := self._judge_session(name))]
        wrong += self._judge_batch(counts)
        mended = sum(self._rig.stack.log(name).count('"entries written again"') for name in ("worker", "worker-2"))
        self._http.close()
        return {**counts, "mended": mended, "wrong": wrong}

    def _judge_viewer(self, viewer: Viewer, counts: Counter[str]) -> str:
        viewer.end(PATIENCE_S)
        told = bool(viewer.error) or viewer.cut or viewer.status != 200
        counts["stream lost" if told else "stream whole"] += 1
        if told:
            return "" if viewer.status != 200 or viewer.expected.startswith(viewer.text) else f"{viewer.text[-60:]}"
        if viewer.text != viewer.expected or viewer.wrong:
            return f"{viewer.id}: {viewer.text[-60:]!r}, {viewer.wrong}"
        return self._is_as_told(viewer.id)

    def _is_as_told(self, generation_id: str) -> str:
        """Whoever asks again gets the same."""
        found = self._read(f"/v1/chat/completions/{generation_id}")
        content = found.json()["choices"][0]["message"]["content"] if found.status_code == 200 else None
        return (
            ""
            if content == TEXT
            else f"{generation_id} was shown whole, and is {found.status_code} {str(content)[-40:]!r}"
        )

    def _judge_stored(self, kind: str, generation_id: str, counts: Counter[str]) -> str:
        """Accepted to run without a viewer: it must not be gone."""
        state = wait_until(lambda: self._ended(generation_id), PATIENCE_S, f"{generation_id} has ended")
        if state["status"] != "completed":
            counts[f"{kind} lost"] += 1
            return "" if state["error"] else f"{generation_id} is {state['status']} without an error"
        counts[f"{kind} whole"] += 1
        return self._is_as_told(generation_id)

    def _ended(self, generation_id: str) -> dict[str, Any] | None:
        found = self._read(f"/v1/streams/{generation_id}", accept="application/json")
        assert found.status_code == 200, f"{generation_id} was accepted, and is {found.status_code}"
        state: dict[str, Any] = found.json()
        return state if state["status"] in TERMINAL else None

    def _judge_session(self, name: str) -> str:
        response = self._read(f"/v1/sessions/{name}/messages")
        answers = [one["content"] for one in response.json()["data"] if one["role"] == "assistant"]
        return "" if all(answer == TEXT for answer in answers) else f"{name} holds {answers[0][-60:]!r}"

    def _judge_batch(self, counts: Counter[str]) -> list[str]:
        found = wait_until(self._batch_ended, PATIENCE_S, "the batch has ended")
        output, errors = (batch.results(self._http, found[name]) for name in ("output_file_id", "error_file_id"))
        counts["line whole"] += len(output)
        counts["line lost"] += len(errors)
        wrong = [
            f"{custom_id}: {content[-60:]!r}"
            for custom_id, line in output.items()
            if (content := line["response"]["body"]["choices"][0]["message"]["content"]) != TEXT
        ]
        if len(output.keys() | errors.keys()) != self._lines or output.keys() & errors.keys():
            wrong.append(f"{len(output)} lines in the output, {len(errors)} in the errors, of {self._lines}")
        return wrong

    def _batch_ended(self) -> dict[str, Any] | None:
        response = self._read(f"/v1/batches/{self._batch}")
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found if found["status"] in batch.ENDED else None

    def _read(self, path: str, accept: str = "*/*") -> httpx.Response:
        """What GET answers, as soon as it is not told to come back later."""

        def answered() -> httpx.Response | None:
            response = self._http.get(path, headers={"accept": accept})
            return None if response.status_code == 503 else response

        response: httpx.Response = wait_until(answered, what=path)
        return response
