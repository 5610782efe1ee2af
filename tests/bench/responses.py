"""What a stream of the Responses API costs, as a multiple of the same stream as a chat: both in one run, by turns.

Hidden here: that the last events of a response say all of it once more, which is no delta; and that what is compared is a
pair of runs beside each other, so that a busy machine is busy for both.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from tests.bench.load import Load, Upstream, Viewers, post
from tests.bench.measures import ATTACHED_PER_S, Figures, Scale, added, counted, median
from tests.bench.targets import Ours, Running


@dataclass(frozen=True)
class Form:
    """How an API is asked, and watched."""

    name: str
    path: str
    watched: str
    """Where a stream is watched whose generation has these 32 digits."""
    field: str
    word: str = ""
    """What ends a stream, of six bytes; empty: [DONE]."""

    def body(self, target: Ours, model: str) -> str:
        asked = "hello" if self.field == "input" else [{"role": "user", "content": "hello"}]
        return json.dumps({"model": target.model(model), "stream": True, self.field: asked}, separators=(",", ":"))

    def viewers(
        self, target: Ours, url: str, chunks: int, viewers: int, *, body: str = "", ramp_s: float = 0
    ) -> Viewers:
        return Viewers(target.cores.load, url, chunks=chunks, viewers=viewers, body=body, ramp_s=ramp_s, word=self.word)

    def ask(self, target: Ours, chunks: int, rate: int, streams: int) -> Load:
        """So many requests for a stream each, to the end."""
        body, url = self.body(target, Upstream.model(chunks, rate)), f"{target.url}{self.path}"
        return self.viewers(target, url, chunks, streams, body=body, ramp_s=min(streams / 100, 4)).result()

    def publish(self, target: Ours, chunks: int, rate: int, *, gated: bool) -> Running:
        """Starts one stream that any number of viewers can watch."""
        body = self.body(target, Upstream.model(chunks, rate, gated=gated)).encode()
        headers = post(f"{target.url}{self.path}", body, {"content-type": "application/json"})
        url = f"{target.url}{self.watched.format(headers['x-stream-id'].removeprefix('chatcmpl-'))}"
        return Running(url, "whole", target.upstream.go, lambda: self.viewers(target, url, chunks, 1).result())


CHAT = Form("chat", "/v1/chat/completions", "/v1/streams/chatcmpl-{}", "messages")
RESPONSES = Form("responses", "/v1/responses", "/v1/responses/resp_{}?stream=true", "input", "e.comp")
FORMS = (CHAT, RESPONSES)


def compared(target: Ours, scale: Scale) -> Figures:
    """The three ratios, of the medians; and what they are made of, as `chat_…` and `responses_…`."""
    found: Figures = added()
    figures = {
        "cpu": ("cpu_us", _live),
        "fan": ("per_core_second", _fan),
        "replay": ("total_p50_ms", _replay),
    }
    for name, (figure, measure) in figures.items():
        runs = [{form.name: measure(target, scale, form) for form in FORMS} for _ in range(scale.reps)]
        both = {form.name: median(run[form.name] for run in runs) for form in FORMS}
        ratios = [run[RESPONSES.name][figure] / run[CHAT.name][figure] for run in runs]
        found |= {f"{form}_{name}": one[figure] for form, one in both.items()}
        found |= {f"{name}_ratio": statistics.median(ratios)}
        found |= added(found, *both.values())
    return found


def _live(target: Ours, scale: Scale, form: Form) -> Figures:
    """50 streams at once, 50 chunks a second each: the CPU of all parts for each chunk that arrived."""
    return counted(target, lambda: form.ask(target, scale.chunks, 50, scale.levels[0]))[1]


def _fan(target: Ours, scale: Scale, form: Form) -> Figures:
    """One stream, many viewers, all attached before it goes on."""
    viewers, rate, chunks = scale.viewers[-1]
    running = form.publish(target, chunks, rate, gated=True)
    watching = form.viewers(target, running.url, chunks, viewers, ramp_s=viewers / ATTACHED_PER_S)
    watching.ready()

    def run() -> Load:
        running.go()
        return watching.result()

    figures = counted(target, run)[1]
    running.finish()
    return figures


def _replay(target: Ours, scale: Scale, form: Form) -> Figures:
    """A finished stream, again and again, to one viewer."""
    running = form.publish(target, scale.replayed, 0, gated=False)
    running.finish()
    run: Callable[[], Load] = lambda: form.viewers(target, running.url, scale.replayed, 1).result()  # noqa: E731
    run()
    return median(counted(target, run)[1] for _ in range(5))
