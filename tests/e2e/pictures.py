"""The pictures of the README, taken of the real thing: a server with made-up models, and the console in a Chromium.

    python -m tests.e2e.pictures

writes `docs/pictures/live-light.webp`, `live-dark.webp`, and `killed.webp`, which moves: five viewers, and the API is killed.
Chromium writes each picture; those that move are put together here (developers.google.com/speed/webp, "Container").
"""

from __future__ import annotations

import base64
import signal
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from playwright.sync_api import Browser, CDPSession, expect

from shared.cli.embedded import EmbeddedValkey
from tests.e2e.console import Asking, Tab, chromium, tab
from tests.harness.processes import ROOT, Stack, wait_until
from tests.harness.upstream import ScriptedUpstream

PICTURES = ROOT / "docs/pictures"
QUALITY, MOVING_QUALITY = 82, 20
FRAME_S = 0.75
LONGEST_S = 40
HOUR = [
    ("fake/echo", "Summarise the minutes of Monday"),
    ("fake/lorem?tokens=90", "A poem"),
    ("fake/lorem?tokens=40", "Why?"),
]
RUNNING = [
    ("fake/lorem?tokens=4000&rate=24", {"team": "search"}),
    ("fake/lorem?tokens=4000&rate=9", {"team": "support"}),
    ("fake/lorem?tokens=4000&rate=40", {"team": "search"}),
    ("fake/lorem?tokens=4000&rate=15", {"team": "evals"}),
]


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with ExitStack() as exits:
        directory = Path(exits.enter_context(tempfile.TemporaryDirectory()))
        valkey = exits.enter_context(EmbeddedValkey(directory / "valkey"))
        upstream = exits.enter_context(ScriptedUpstream())
        (directory / "stack").mkdir()
        stack = exits.enter_context(Stack(valkey.url, upstream.base_url, directory / "stack"))
        browser = exits.enter_context(chromium())
        fill(Asking(stack.url))
        for colours in ("light", "dark"):
            still(browser, stack.url, colours)
        moving(browser, stack)


def fill(asking: Asking) -> None:
    """An hour's worth in a minute, and some that run."""
    for turn in range(12):
        for model, text in HOUR:
            asking.ask(model, text, metadata={"team": "search"})
        if turn % 4 == 1:
            asking.ask("fake/echo?error=429", "Too many")
    for model, metadata in RUNNING:
        asking.ask(model, "Go on", background=True, metadata=metadata)


def still(browser: Browser, url: str, colours: str) -> None:
    with tab(
        browser, url, viewport={"width": 1280, "height": 720}, color_scheme=colours, device_scale_factor=1.5
    ) as one:
        page = one.go("/")
        expect(page.locator(".lastwords").filter(has_text="…")).to_have_count(len(RUNNING), timeout=60_000)
        page.wait_for_timeout(2500)  # until the plots are drawn
        (PICTURES / f"live-{colours}.webp").write_bytes(shot(page.context.new_cdp_session(page), QUALITY))


def shot(client: CDPSession, quality: int) -> bytes:
    told = client.send("Page.captureScreenshot", {"format": "webp", "quality": quality})
    return base64.b64decode(told["data"])


def moving(browser: Browser, stack: Stack) -> None:
    generation_id = Asking(stack.url).ask("fake/lorem?tokens=300&rate=22", "Tell me something long.", background=True)
    width, height = 1040, 390
    with tab(browser, stack.url, viewport={"width": width, "height": height}, color_scheme="light") as one:
        frames = list(watched(one, stack, generation_id))
    (PICTURES / "killed.webp").write_bytes(animated(frames, width, height))


def watched(one: Tab, stack: Stack, generation_id: str) -> Iterator[bytes]:
    """Frames of the page, from its first words until a moment after all are done. The API is killed in the middle."""
    page = one.go(f"/viewers/{generation_id}")
    client = page.context.new_cdp_session(page)
    chunks = page.locator(".five .card .facts dd").first
    expect(chunks).not_to_have_text("0")
    killed_at, over_at, began = 0.0, 0.0, time.monotonic()
    while time.monotonic() < (over_at + 2 if over_at else began + LONGEST_S):
        page.wait_for_timeout(FRAME_S * 1000)
        yield shot(client, MOVING_QUALITY)
        if not killed_at and int(chunks.inner_text()) > 100:
            stack.process("api").send_signal(signal.SIGKILL)
            stack.process("api").wait()
            killed_at = time.monotonic()
        elif killed_at and stack.process("api").poll() is not None and time.monotonic() > killed_at + 2:
            stack.start("api")
        elif killed_at and not over_at and page.get_by_text("yes", exact=True).count() == 5:
            over_at = time.monotonic()
    wait_until(lambda: over_at, 1, "all five have it all")


def animated(frames: list[bytes], width: int, height: int) -> bytes:
    """One picture that moves; what does not change is shown for longer."""
    shown: list[tuple[bytes, int]] = []
    for frame in frames:
        ms = round(FRAME_S * 1000)
        if shown and shown[-1][0] == frame:
            shown[-1] = (frame, shown[-1][1] + ms)
        else:
            shown.append((frame, ms))
    parts = [_chunk(b"VP8X", struct.pack("<I", 2) + _three(width - 1) + _three(height - 1))]
    parts.append(_chunk(b"ANIM", b"\xff\xff\xff\xff" + struct.pack("<H", 0)))
    for frame, ms in shown:
        place = _three(0) + _three(0) + _three(width - 1) + _three(height - 1) + _three(ms) + b"\x02"
        parts.append(_chunk(b"ANMF", place + _image(frame)))
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _image(webp: bytes) -> bytes:
    """The chunk with the pixels, as it stands in the file."""
    at = 12
    while at < len(webp):
        kind, size = webp[at : at + 4], struct.unpack("<I", webp[at + 4 : at + 8])[0]
        end = at + 8 + size + size % 2
        if kind in (b"VP8 ", b"VP8L"):
            return webp[at:end]
        at = end
    raise ValueError("no picture")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def _three(number: int) -> bytes:
    return struct.pack("<I", number)[:3]


if __name__ == "__main__":
    main()
