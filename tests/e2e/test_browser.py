"""A page of another origin and a keyed API, in a real Chromium: fetch, an EventSource's polyfill, and its own with a token."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest

from shared.cli.embedded import EmbeddedValkey
from tests.e2e.browser import CHROMIUM, POLYFILL, Site, browsing
from tests.harness.processes import Stack
from tests.harness.upstream import Pause, ScriptedUpstream, ending, words
from tests.support.fronts import Relay
from tests.support.wire import KEY_A

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here"),
    pytest.mark.skipif(not POLYFILL.exists(), reason="`make clients` has not been run"),
    pytest.mark.timeout(300),
]
COUNT = 6
TEXT = "".join(f"w{number} " for number in range(COUNT))


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site().open() as open_site:
        yield open_site


@pytest.fixture(scope="module")
def api(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory, site: Site
) -> Iterator[Stack]:
    settings = {
        "STREAMSPOOL_API_KEYS": f"a:{KEY_A}",
        "STREAMSPOOL_CORS_ORIGINS": site.origin(),
        "STREAMSPOOL_HOLD_HEADERS_S": "0.2",
        "STREAMSPOOL_KEEPALIVE_S": "0.2",
    }
    url = valkey.url.replace("db=0", "db=10")
    with Stack(url, upstream.base_url, tmp_path_factory.mktemp("api"), **settings) as running:
        yield running


class Shown:
    """A page at its exercise; the provider has said three words and waits for `pause`, and the network is `relay`."""

    def __init__(self, site: Site, pause: Pause, relay: Relay) -> None:
        self.site, self.pause, self.relay = site, pause, relay

    def wait_for_words(self, text: str) -> None:
        while self.site.hear("words") != text:
            pass

    def end(self) -> dict[str, Any]:
        found: dict[str, Any] = self.site.hear("end")
        return found


@contextmanager
def showing(
    exercise: str, site: Site, api: Stack, upstream: ScriptedUpstream, host: str = "localhost"
) -> Iterator[Shown]:
    pause, name = Pause(), f"e2e-{uuid.uuid4().hex}"
    upstream.script(name, [*words(3), pause, *words(COUNT)[4:], *ending()])
    with ExitStack() as exits:
        relay = exits.enter_context(Relay(api.port))
        address = f"http://127.0.0.1:{relay.port}"
        site.show(exercise=exercise, api=address, key=KEY_A, model=f"scripted/{name}")
        exits.callback(pause.go)
        exits.enter_context(browsing(site.origin(host)))
        yield Shown(site, pause, relay)


def test_fetch_streams_and_reads_what_it_needs(site: Site, api: Stack, upstream: ScriptedUpstream) -> None:
    with showing("fetch", site, api, upstream) as page:
        page.wait_for_words("w0 w1 w2 ")  # they come while the provider waits
        page.pause.go()
        seen = page.end()
    assert (seen["status"], seen["text"], seen["done"], seen["ended"]) == (200, TEXT, True, "whole")
    assert seen["id"].startswith("chatcmpl-")
    assert seen["request"]


def test_fetch_sees_a_cut(site: Site, api: Stack, upstream: ScriptedUpstream) -> None:
    with showing("fetch", site, api, upstream) as page:
        page.wait_for_words("w0 w1 w2 ")
        page.relay.cut()
        seen = page.end()
    assert (seen["text"], seen["done"], seen["ended"]) == ("w0 w1 w2 ", False, "TypeError")


@pytest.mark.parametrize("exercise", ["polyfill", "token"])
def test_an_event_source_goes_on_where_it_was_cut(
    site: Site, api: Stack, upstream: ScriptedUpstream, exercise: str
) -> None:
    with showing(exercise, site, api, upstream) as page:
        page.wait_for_words("w0 w1 w2 ")
        page.relay.cut()
        page.pause.go()
        seen = page.end()
    assert seen["text"] == TEXT  # each word once
    assert (seen["opens"], seen["errors"]) == (2, 1)
    if exercise == "token":
        assert KEY_A not in seen["url"]


def test_a_page_that_is_not_named_can_neither_ask_nor_read(site: Site, api: Stack, upstream: ScriptedUpstream) -> None:
    headers = {"authorization": f"Bearer {KEY_A}"}

    def listed() -> list[str]:
        found = httpx.get(f"{api.url}/v1/streams", headers=headers, trust_env=False, timeout=60).json()
        return [one["id"] for one in found["data"]]

    before = listed()
    with showing("stranger", site, api, upstream, host="127.0.0.1") as page:
        assert page.end() == {"chat": "TypeError", "list": "TypeError"}
    assert listed() == before  # the preflight kept the question away
