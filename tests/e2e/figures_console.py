"""What the console costs, in a real Chromium on the loopback: `python -m tests.e2e.figures_console`.

The first paint and the bytes over the wire of a first visit; what many tabs of one browser cost the API, how many connections
they have, how soon each shows what is new, and that none starves; and the memory of a tab that watches thousands of rows come.

Options: --tabs 20, --rows 5000, --seconds 30, and what is measured, `paint`, `tabs`, `memory`, all of them if none is named.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from playwright.sync_api import Browser, BrowserContext, Page, expect

from shared.cli.embedded import EmbeddedValkey
from tests.bench.machine import cpu_s
from tests.e2e.console import Asking, Tab, chromium, tab
from tests.harness.processes import Stack, wait_until
from tests.harness.upstream import ScriptedUpstream

VISITS = 9
SLOW = "fake/lorem?tokens=20000&rate=5"
AT_ONCE = 24
ESTABLISHED = "01"
PAINT = """() => {
    const [first] = performance.getEntriesByName('first-contentful-paint')
    const [visit] = performance.getEntriesByType('navigation')
    return [first.startTime, visit.responseEnd, performance.now()]
}"""
LATER = "performance.getEntriesByType('resource').filter((one) => one.name.includes('/pages/')).length"
NOTE = """() => {
    window.shown = {}
    const look = () => {
        for (const link of document.querySelectorAll('a[href*="/r/"]'))
            window.shown[link.getAttribute('href').split('/r/')[1].split('?')[0]] ??= Date.now()
    }
    look()
    new MutationObserver(look).observe(document.body, { childList: true, subtree: true, attributes: true })
}"""
"""When each answer was first to be seen, by the page's own clock: to ask twenty pages one after the other takes seconds."""
WHEN = "(id) => window.shown[id]"
ASK = """async (path) => {
    const start = performance.now()
    await fetch(path, { cache: 'no-store' }).then((response) => response.text())
    return performance.now() - start
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="paint, tabs, memory")
    parser.add_argument("--tabs", type=int, default=20)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=30)
    given = parser.parse_args()
    measured: dict[str, Callable[[Browser, Stack], Iterator[str]]] = {
        "paint": paint,
        "tabs": lambda browser, stack: tabs(browser, stack, given.tabs, given.seconds),
        "memory": lambda browser, stack: memory(browser, stack, given.rows),
    }
    for name in given.what or measured:
        with running() as (browser, stack):
            for line in measured[name](browser, stack):
                print(f"{name}: {line}", flush=True)


@contextmanager
def running() -> Iterator[tuple[Browser, Stack]]:
    """A server that knows nothing, and a browser."""
    with ExitStack() as exits:
        directory = Path(exits.enter_context(tempfile.TemporaryDirectory()))
        valkey = exits.enter_context(EmbeddedValkey(directory / "valkey"))
        upstream = exits.enter_context(ScriptedUpstream())
        (directory / "stack").mkdir()
        stack = exits.enter_context(Stack(valkey.url, upstream.base_url, directory / "stack"))
        yield exits.enter_context(chromium()), stack


# ---- a first visit


def paint(browser: Browser, stack: Stack) -> Iterator[str]:
    visits = [visited(browser, stack.url) for _ in range(VISITS)]
    for name, at in (("first contentful paint", 0), ("page with its tiles", 1)):
        times = [one[at] for one in visits]
        yield f"{name} {statistics.median(times):.0f} ms (median of {VISITS}, {min(times):.0f} to {max(times):.0f})"
    _, _, before, files, whole = visits[0]
    yield f"{before / 1000:.1f} kB in {files} files before any content, {whole / 1000:.1f} kB with the pages that come later"


def visited(browser: Browser, url: str) -> tuple[float, float, int, int, int]:
    """First paint and when the tiles are there, in ms; bytes and files before that, and bytes of all."""
    with tab(browser, url) as one:
        client = one.page.context.new_cdp_session(one.page)
        client.send("Network.enable")
        sizes: list[int] = []
        paths: dict[str, str] = {}
        client.on(
            "Network.responseReceived", lambda event: paths.update({event["requestId"]: event["response"]["url"]})
        )

        def loaded(event: dict[str, float]) -> None:
            if "/console" in paths.get(str(event["requestId"]), ""):
                sizes.append(int(event["encodedDataLength"]))

        client.on("Network.loadingFinished", loaded)
        page = one.go("/")
        page.locator(".tile").first.wait_for()
        first, _, now = page.evaluate(PAINT)
        before, files = sum(sizes), len(sizes)
        while page.evaluate(LATER) <= 20:  # until the other pages are there, too
            page.wait_for_timeout(100)
        page.wait_for_timeout(1000)
        one.check()
        return first, now, before, files, sum(sizes)


# ---- many tabs


def tabs(browser: Browser, stack: Stack, count: int, seconds: float) -> Iterator[str]:
    asking = Asking(stack.url)
    ids = [asking.ask(SLOW, background=True) for _ in range(count)]
    wait_until(lambda: all(asking.state(one)["status"] == "in_progress" for one in ids), 60, "all run")
    for opened in (1, count):
        with tab(browser, stack.url) as one:
            pages = [page for page, _ in open_pages(one, [""] * opened)]
            for page in pages:
                expect(page.locator("table[aria-label='Running now'] tbody tr").first).to_be_visible()
            yield from cost(stack, pages, f"{opened} × Live, {count} answers run", seconds)
            for page in pages:
                page.evaluate(NOTE)
            began = time.time()
            new = asking.ask(SLOW, background=True)
            shown = sorted(page.wait_for_function(WHEN, arg=new).json_value() / 1000 - began for page in pages)
            yield (
                f"{opened} × Live: a new answer is shown {statistics.median(shown):.2f} s after it was asked for, "
                f"by the last of them after {shown[-1]:.2f} s"
            )
            asking.http.post(f"/v1/streams/{new}/cancel")
    with tab(browser, stack.url) as one:
        pages = [page for page, _ in open_pages(one, [f"r/{generation_id}" for generation_id in ids])]
        said = "document.querySelector('.message.assistant .markdown')?.innerText.length ?? 0"
        for page in pages:
            expect(page.locator(".message.assistant .markdown")).not_to_be_empty(timeout=120_000)
        before = [page.evaluate(said) for page in pages]
        yield from cost(stack, pages, f"{count} × Request, each another answer", seconds)
        grown = [page.evaluate(said) - old for page, old in zip(pages, before, strict=True)]
        yield f"{count} × Request: the text of each grew by {min(grown)} to {max(grown)} characters meanwhile"
    for generation_id in ids:
        asking.http.post(f"/v1/streams/{generation_id}/cancel")


def open_pages(first: Tab, paths: list[str]) -> Iterator[tuple[Page, str]]:
    """All in one profile, as tabs of one browser are; each is shown, as in a window of its own."""
    context: BrowserContext = first.page.context
    for number, path in enumerate(paths):
        page = first.page if not number else context.new_page()
        page.set_default_timeout(60_000)
        page.goto(f"{first.url}/console/{path}")
        yield page, path


def cost(stack: Stack, pages: list[Page], what: str, seconds: float) -> Iterator[str]:
    """Of the API while these are open: CPU, connections, requests; and how soon a page's own question is answered."""
    asked: list[str] = []
    for page in pages:
        page.on("request", lambda request: asked.append(request.url))
    pid = stack.process("api").pid
    counts: list[int] = []
    waits: list[float] = []
    began, cpu = time.monotonic(), cpu_s([pid])
    while (passed := time.monotonic() - began) < seconds:
        page = pages[len(waits) % len(pages)]
        waits.append(page.evaluate(ASK, "/healthz"))
        page.wait_for_timeout(500)
        counts.append(connections(stack.port))
    used, requests = cpu_s([pid]) - cpu, len([url for url in asked if not url.endswith("/healthz")])
    yield (
        f"{what}: API {100 * used / passed:.1f} % of a core, {max(counts)} connections at most, "
        f"{requests / passed:.1f} requests/s; "
        f"a question of a page takes {statistics.median(waits):.0f} ms ({max(waits):.0f} at most of {len(waits)})"
    )


def connections(port: int) -> int:
    """To that port, as the server has them (proc(5), /proc/net/tcp)."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return len([row for row in rows if row[1].endswith(f":{port:04X}") and row[3] == ESTABLISHED])


# ---- a tab that watches


def memory(browser: Browser, stack: Stack, rows: int) -> Iterator[str]:
    with tab(browser, stack.url) as one:
        page = one.go("/")
        expect(page.get_by_text("Nothing runs just now")).to_be_visible()
        page.wait_for_timeout(3000)
        yield f"before: {held(page)}"
        for turn in (1, 2):
            began = time.monotonic()
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(Asker(stack.url), range(rows)))
            took = time.monotonic() - began
            page.wait_for_timeout(5000)
            yield f"{turn * rows:,} rows came (the last {rows:,} in {took:.0f} s): {held(page)}"
        one.check()


class Asker:
    """Asks for one answer each time it is called, in whichever thread."""

    def __init__(self, url: str) -> None:
        self._asking = Asking(url)

    def __call__(self, number: int) -> None:
        self._asking.ask("fake/echo", f"Row {number}", metadata={"number": str(number)})


def held(page: Page) -> str:
    """After what nobody holds has been collected."""
    client = page.context.new_cdp_session(page)
    client.send("HeapProfiler.collectGarbage")
    used = client.send("Runtime.getHeapUsage")["usedSize"]
    counters = client.send("Memory.getDOMCounters")
    client.detach()
    return f"{used / 1e6:.1f} MB of heap, {counters['nodes']:,} nodes, {counters['jsEventListeners']:,} listeners"


if __name__ == "__main__":
    main()
