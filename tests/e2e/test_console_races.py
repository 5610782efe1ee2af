"""The console where things come in another order than they were asked for, twice in a frame, or after the reader has left.

Each test holds an answer back, or gives the page a clock of its own, and so makes the order itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Browser, Page, Response, Route, expect

from shared.cli.embedded import EmbeddedValkey
from tests.e2e.console import MARKS, NEXT_FRAMES, WAIT_MS, Asking, Held, tab
from tests.harness.processes import Stack, wait_until
from tests.harness.store import emptied
from tests.harness.upstream import ScriptedUpstream
from tests.support.wire import ADMIN_KEY, KEY_A

pytestmark = MARKS
LONG = "fake/lorem?tokens=20000&rate=30"  # longer than any test may last
PRESS = """
  keys => { for (const key of keys) document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true })) }
"""
"""All of them in one frame."""


@pytest.fixture(scope="module")
def server(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    url = emptied(valkey.url.replace("db=0", "db=14"))
    with Stack(url, upstream.base_url, tmp_path_factory.mktemp("races")) as running:
        yield running


@pytest.fixture(scope="module")
def keyed(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    url = emptied(valkey.url.replace("db=0", "db=13"))
    keys = {"STREAMSPOOL_API_KEYS": f"a:{KEY_A}", "STREAMSPOOL_ADMIN_KEYS": f"ops:{ADMIN_KEY}"}
    with Stack(url, upstream.base_url, tmp_path_factory.mktemp("keyed"), **keys) as running:
        yield running


def refused(status: int, code: str) -> dict[str, Any]:
    error = {"message": f"It was {code}.", "type": "server_error", "param": None, "code": code}
    return {"status": status, "json": {"error": error}}


def listed(rows: list[dict[str, Any]], *, more: bool = False) -> dict[str, Any]:
    return {"json": {"object": "list", "data": rows, "first_id": None, "last_id": rows[-1]["id"], "has_more": more}}


def like(server: Stack, count: int, model: str) -> list[dict[str, Any]]:
    """Rows as the server's own list has them."""
    asking = Asking(server.url)
    real = asking.state(asking.ask("fake/echo", "one that others are like"))
    return [{**real, "id": f"chatcmpl-{number:032x}", "model": model, "served_by": model} for number in range(count)]


# ---- answers in another order


def test_a_refusal_of_before_the_sign_in_does_not_sign_out(browser: Browser, keyed: Stack) -> None:
    with tab(browser, keyed.url) as one:

        def is_question(route: Route) -> bool:
            return route.request.method == "GET"

        who = Held(one.page, "**/console/session", only=is_question)
        page = one.go("/requests")
        expect(page.get_by_role("heading", name="Sign in to Streamspool")).to_be_visible()
        page.get_by_label("Key", exact=True).fill(KEY_A)
        page.get_by_role("button", name="Sign in").click()
        expect(page.locator(".side")).to_be_visible()
        who.let_go(**refused(401, "invalid_api_key"))
        who.open()
        expect(page.locator(".side")).to_be_visible()
        expect(page.get_by_role("heading", name="Sign in to Streamspool")).to_have_count(0)


def test_an_answer_of_before_the_sign_out_does_not_sign_in(browser: Browser, keyed: Stack) -> None:
    with tab(browser, keyed.url) as one:
        page = one.go("/sessions")
        page.get_by_label("Key", exact=True).fill(KEY_A)
        sessions = Held(page, "**/v1/sessions?*")
        page.get_by_role("button", name="Sign in").click()
        expect(page.locator(".side")).to_be_visible()
        sessions.wait()
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", name="Sign in to Streamspool")).to_be_visible()
        sessions.let_go(json={"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False})
        expect(page.get_by_role("heading", name="Sign in to Streamspool")).to_be_visible()
        expect(page.locator(".side")).to_have_count(0)


def test_a_list_is_not_written_over_by_one_that_is_asked_for_again_since_it_failed(
    browser: Browser, server: Stack
) -> None:
    """The list fails; a filter is set; and the first list would be asked for again before the second is there."""
    before, after = like(server, 3, "model/before"), like(server, 2, "model/after")
    with tab(browser, server.url) as one:
        page = one.page
        page.clock.install()
        first = Held(page, re.compile(r"/v1/streams\?limit=100$"))
        second = Held(page, re.compile(r"/v1/streams\?limit=100&status=failed$"))
        one.go("/requests")
        first.let_go(**refused(503, "storage_unavailable"))
        expect(page.get_by_role("alert")).to_contain_text("storage_unavailable")
        page.get_by_role("button", name="Failed", exact=True).click()
        second.wait()
        page.clock.fast_forward(3000)
        page.evaluate(NEXT_FRAMES)
        if first.waits():
            first.let_go(**listed(before))
        second.let_go(**listed(after))
        rows = page.locator("table[aria-label=Requests] tbody tr")
        expect(rows).to_have_count(2)
        expect(rows.first).to_contain_text("model/after")


def test_rows_of_another_filter_are_not_shown_beside_the_error_of_this_one(browser: Browser, server: Stack) -> None:
    with tab(browser, server.url) as one:
        page = one.page
        Held(page, re.compile(r"/v1/streams\?limit=100$")).answer(**listed(like(server, 3, "model/before")))
        Held(page, re.compile(r"/v1/streams\?limit=100&status=failed$")).answer(**refused(400, "invalid_value"))
        one.go("/requests")
        rows = page.locator("table[aria-label=Requests] tbody tr")
        expect(rows).to_have_count(3)
        page.get_by_role("button", name="Failed", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text("invalid_value")
        expect(rows).to_have_count(0)


def test_a_shared_answer_does_not_go_back_to_what_it_was(browser: Browser, keyed: Stack) -> None:
    """A state that was asked for while it ran arrives after the one that it ended with."""
    asking = Asking(keyed.url, {"authorization": f"Bearer {KEY_A}"})
    generation_id = asking.ask(LONG, background=True)
    made = asking.http.post(f"/v1/streams/{generation_id}/shares", json={"mode": "control", "expires_in": 3600}).json()
    with tab(browser, keyed.url) as guest:
        page = guest.page

        def is_state(route: Route) -> bool:
            return "json" in (route.request.headers.get("accept") or "")

        states = Held(page, f"**/v1/streams/{generation_id}*", only=is_state)
        page.goto(made["url"] if made["url"].startswith("http") else keyed.url + made["url"])
        states.let_go()
        status = page.locator("h1 .status")
        expect(status).to_have_attribute("data-status", "in_progress")
        running = asking.state(generation_id)
        states.wait()  # it asks again while it runs
        states.open()
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("button", name="Cancel it").click()
        expect(status).to_have_attribute("data-status", "cancelled")
        states.let_go(aborts=True, json=running)
        expect(status).to_have_attribute("data-status", "cancelled")


def test_the_links_of_an_answer_have_the_one_just_made(browser: Browser, server: Stack) -> None:
    generation_id = Asking(server.url).ask("fake/echo", "shared")
    with tab(browser, server.url) as one:
        page = one.page

        def is_list(route: Route) -> bool:
            return route.request.method == "GET"

        shares = Held(page, f"**/v1/streams/{generation_id}/shares*", only=is_list)
        one.go(f"/r/{generation_id}")
        expect(page.get_by_role("tab").first).to_be_visible()
        page.get_by_role("button", name="Share", exact=True).click()
        shares.wait()
        page.get_by_role("button", name="Make a link").click()
        shares.wait(2)
        shares.let_go(newest=True)
        expect(page.get_by_text("Links there are")).to_be_visible()
        shares.let_go(aborts=True, json={"object": "list", "data": [], "has_more": False})
        expect(page.get_by_text("Links there are")).to_be_visible()


def test_what_runs_is_not_kept_by_an_answer_that_came_after_its_end(browser: Browser, server: Stack) -> None:
    asking = Asking(server.url)
    generation_id = asking.ask(LONG, background=True)
    running = asking.state(generation_id)
    asking.http.delete(f"/v1/streams/{generation_id}")
    with tab(browser, server.url) as one:
        page = one.page
        hour = Held(page, re.compile(r"/v1/streams\?limit=100&since="))
        polled = Held(page, re.compile(r"/v1/streams\?limit=100&status=queued%2Cin_progress"))
        one.go("/")
        expect(page.get_by_role("status").filter(has_text="Live").first).to_be_visible()
        hour.let_go(**listed([running]))
        row = page.locator("table[aria-label='Running now'] tbody tr")
        expect(row).to_have_count(1)
        polled.let_go()
        polled.open()
        expect(page.get_by_text("Nothing runs just now")).to_be_visible()


def test_of_what_may_have_ended_the_state_is_told(browser: Browser, server: Stack) -> None:
    """Events name the tenant of each, and only an admin may name one."""
    asking = Asking(server.url)
    with tab(browser, server.url) as one:
        page = one.page
        polled = Held(page, re.compile(r"/v1/streams\?limit=100&status=queued%2Cin_progress"))
        polled.answer(json={"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False})
        one.go("/")
        expect(page.get_by_role("status").filter(has_text="Live").first).to_be_visible()
        generation_id = asking.ask(LONG, background=True)

        def is_state(response: Response) -> bool:
            return generation_id in response.url and "json" in (response.request.headers.get("accept") or "")

        with page.expect_response(is_state, timeout=WAIT_MS) as told:
            pass
        assert (told.value.status, urlsplit(told.value.url).query) == (200, "")
    asking.http.post(f"/v1/streams/{generation_id}/cancel")


def test_a_row_keeps_what_events_do_not_tell(browser: Browser, server: Stack) -> None:
    asking = Asking(server.url)
    with tab(browser, server.url) as one:
        page = one.page
        Held(page, re.compile(r"/v1/streams\?limit=100&status=queued%2Cin_progress"))
        with page.expect_response(re.compile(r"/v1/streams\?limit=100$")):
            one.go("/requests")
        expect(page.get_by_role("status").filter(has_text="Live").first).to_be_visible()
        page.evaluate(NEXT_FRAMES)
        generation_id = asking.ask(LONG, background=True, metadata={"team": "of-the-row"})
        page.get_by_role("button", name=re.compile("new: show")).click()
        row = page.locator("table[aria-label=Requests] tbody tr").filter(has_text="fake/lorem").first
        expect(row).to_contain_text("team:of-the-row")
    asking.http.post(f"/v1/streams/{generation_id}/cancel")


# ---- after the reader has left


def test_a_batch_that_was_left_before_it_was_there_is_not_followed(browser: Browser, server: Stack) -> None:
    batch = a_batch(server)
    with tab(browser, server.url) as one:
        page = one.page
        held = Held(page, f"**/v1/batches/{batch['id']}")
        one.go(f"/batches/{batch['id']}")
        held.wait()
        page.get_by_role("link", name="Help", exact=True).click()
        expect(page.locator("h1")).to_have_text("Help")
        held.let_go(aborts=True, json={**batch, "status": "in_progress"})
        assert not [url for url in one.asked if url.endswith("/events") and "/batches/" in url]


def a_batch(server: Stack) -> dict[str, Any]:
    asking = Asking(server.url)
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions"}
    line["body"] = {"model": "fake/echo", "messages": [{"role": "user", "content": "Hi"}]}  # type: ignore[assignment]
    files = {"file": ("in.jsonl", json.dumps(line).encode())}
    stored = asking.http.post("/v1/files", data={"purpose": "batch"}, files=files).json()["id"]
    body = {"input_file_id": stored, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    made: dict[str, Any] = asking.http.post("/v1/batches", json=body).json()
    return made


def test_a_batch_is_there_once_the_server_is(browser: Browser, server: Stack) -> None:
    batch = a_batch(server)
    with tab(browser, server.url) as one:
        held = Held(one.page, f"**/v1/batches/{batch['id']}")
        page = one.go(f"/batches/{batch['id']}")
        held.let_go(**refused(503, "storage_unavailable"))
        expect(page.get_by_role("alert").first).to_contain_text("storage_unavailable")
        held.let_go()
        expect(page.get_by_role("heading", name="Progress")).to_be_visible()


def test_an_answer_of_the_playground_is_not_asked_for_once_it_was_left(browser: Browser, server: Stack) -> None:
    asking = Asking(server.url)
    with tab(browser, server.url) as one:
        page = one.page
        page.clock.install()
        one.go("/playground")

        def is_state(route: Route) -> bool:
            return "json" in (route.request.headers.get("accept") or "")

        states = Held(page, re.compile(r"/v1/streams/chatcmpl-[0-9a-f]+$"), only=is_state)
        page.get_by_role("button", name="Send").click()
        states.wait()
        generation_id = states.newest().request.url.rpartition("/")[2]
        page.get_by_role("link", name="Help", exact=True).click()
        expect(page.locator("h1")).to_have_text("Help")
        states.let_go(aborts=True, json={**asking.state(generation_id), "status": "in_progress"})
        page.clock.fast_forward(5000)
        page.evaluate(NEXT_FRAMES)
        assert not states.waits()


def test_a_search_that_was_begun_does_not_reach_the_next_page(browser: Browser, server: Stack) -> None:
    with tab(browser, server.url) as one:
        page = one.page
        page.clock.install()
        one.go("/requests")
        expect(page.locator("[data-search]")).to_be_visible()
        page.evaluate(
            """() => {
                const field = document.querySelector('[data-search]')
                field.value = 'lorem'
                field.dispatchEvent(new Event('input', { bubbles: true }))
                document.querySelector('nav a[href$="/usage"]').click()
            }"""
        )
        expect(page.locator("h1")).to_have_text("Usage")
        page.clock.fast_forward(1000)
        page.evaluate(NEXT_FRAMES)
        assert page.url == f"{server.url}/console/usage"


def test_nobody_is_taken_away_from_where_he_has_gone(browser: Browser, server: Stack) -> None:
    generation_id = Asking(server.url).ask("fake/echo", "asked again")
    with tab(browser, server.url) as one:
        page = one.page
        retried = Held(page, "**/retry*")
        one.go(f"/r/{generation_id}")
        page.get_by_role("button", name="Retry").click()
        retried.wait()
        page.get_by_role("link", name="Help", exact=True).click()
        expect(page.locator("h1")).to_have_text("Help")
        retried.let_go()
        assert page.url == f"{server.url}/console/help"


# ---- two in one frame, and twice


def test_keys_do_not_go_past_a_question_that_is_not_drawn_yet(browser: Browser, server: Stack) -> None:
    asking = Asking(server.url)
    generation_id = asking.ask(LONG, background=True)
    with tab(browser, server.url) as one:
        page = one.go("/help")
        expect(page.locator("h1")).to_have_text("Help")
        page.evaluate(
            "(path) => { history.pushState(null, '', path); dispatchEvent(new PopStateEvent('popstate')) }",
            f"/console/r/{generation_id}",
        )
        expect(page.get_by_role("button", name="Cancel")).to_be_visible()
        page.evaluate(PRESS, ["x", "g", "o"])
        question = page.get_by_role("dialog", name="Cancel this request?")
        expect(question).to_be_visible()
        page.go_back()  # another page is an answer, too
        expect(page.locator("h1")).to_have_text("Help")
        expect(question).to_have_count(0)
        assert asking.state(generation_id)["status"] != "cancelled"
    asking.http.post(f"/v1/streams/{generation_id}/cancel")


def test_the_focus_comes_back_from_a_dialog_that_a_button_closes(browser: Browser, server: Stack) -> None:
    generation_id = Asking(server.url).ask("fake/echo", "shared")
    with tab(browser, server.url) as one:
        page = one.go(f"/r/{generation_id}")
        share = page.get_by_role("button", name="Share", exact=True)
        share.focus()
        page.keyboard.press("Enter")
        page.get_by_role("dialog").get_by_role("button", name="Close").click()
        expect(page.get_by_role("dialog")).to_have_count(0)
        expect(share).to_be_focused()


def test_arrows_of_one_frame_are_as_many_tabs(browser: Browser, server: Stack) -> None:
    with tab(browser, server.url) as one:
        page = one.go("/operations")
        first = page.get_by_role("tab", name="Workers and queue")
        expect(first).to_have_attribute("aria-selected", "true")
        first.evaluate(
            """(tab) => {
                for (let step = 0; step < 3; step += 1) {
                    tab.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowRight', bubbles: true }))
                }
            }"""
        )
        expect(page.get_by_role("tab", selected=True)).to_have_text("Limits")


def test_two_filters_of_one_frame_are_both_set(browser: Browser, server: Stack) -> None:
    asking = Asking(server.url)
    asking.ask("fake/echo", "well")
    asking.ask("fake/echo?error=429")
    with tab(browser, server.url) as one:
        page = one.go("/requests")
        statuses = page.locator(".facets details").filter(has=page.get_by_role("heading", name="Status"))
        for status in ("completed", "failed"):
            expect(statuses.get_by_role("button", name=re.compile(f"^{status}"))).to_be_visible()
        statuses.evaluate("(all) => all.querySelectorAll('button').forEach((one) => one.click())")
        expect(page).to_have_url(re.compile("status=.*completed"))
        assert "failed" in parse_qs(urlsplit(page.url).query)["status"][0].split(",")


def test_requests_are_asked_again_once(browser: Browser, server: Stack) -> None:
    asking = Asking(server.url)
    generation_id = asking.ask("fake/echo", "chosen")
    with tab(browser, server.url) as one:
        page = one.page
        retried = Held(page, "**/retry*")
        one.go("/requests")
        page.get_by_role("checkbox", name=f"Choose {generation_id}").check()
        again = page.get_by_role("button", name="Retry 1")
        again.evaluate("(button) => { button.click(); button.click() }")
        retried.wait()
        expect(again).to_be_disabled()
        retried.let_go()
        expect(page.get_by_text("1 asked again")).to_be_visible()
        assert len([url for url in one.asked if "/retry" in url]) == 1


# ---- what a redraw takes away


def test_what_was_opened_stays_open_when_its_last_filter_is_taken_out(browser: Browser, server: Stack) -> None:
    with tab(browser, server.url) as one:
        page = one.go("/requests?min_tokens=3")
        field = page.get_by_role("spinbutton", name="Tokens, min")
        expect(field).to_have_value("3")
        field.fill("")
        field.press("Enter")
        expect(page).not_to_have_url(re.compile("min_tokens"))
        expect(field).to_be_visible()
        expect(field).to_be_focused()


def test_rows_stay_while_the_focus_goes_from_one_to_the_next(browser: Browser, server: Stack) -> None:
    asking = Asking(server.url)
    ids = [asking.ask(LONG, background=True) for _ in range(2)]
    with tab(browser, server.url) as one:
        page = one.go("/")
        rows = page.locator("table[aria-label='Running now'] tbody tr")
        expect(rows).to_have_count(2)
        page.locator("[aria-label='Running now'].scroller").focus()
        page.keyboard.press("Tab")
        expect(rows.first.get_by_role("link")).to_be_focused()
        ids.append(asking.ask(LONG, background=True))
        expect(page.get_by_text("1 more, held back while you are here")).to_be_visible()
        page.keyboard.press("Tab")  # the button beside it
        page.keyboard.press("Tab")
        expect(rows.nth(1).get_by_role("link")).to_be_focused()
        page.evaluate(NEXT_FRAMES)
        expect(rows).to_have_count(2)
    for generation_id in ids:
        asking.http.post(f"/v1/streams/{generation_id}/cancel")


def test_a_table_that_was_short_meanwhile_shows_its_first_rows(browser: Browser, server: Stack) -> None:
    many, few = like(server, 200, "model/many"), like(server, 5, "model/few")
    with tab(browser, server.url) as one:
        page = one.page
        Held(page, re.compile(r"/v1/streams\?limit=100$")).answer(**listed(many))
        Held(page, re.compile(r"/v1/streams\?limit=100&status=failed$")).answer(**listed(few))
        one.go("/requests")
        rows = page.locator("table[aria-label=Requests] tbody tr")
        expect(rows.first).to_contain_text("model/many")
        page.locator("[aria-label=Requests].scroller").evaluate("(box) => box.scrollTop = box.scrollHeight")
        expect(page.locator("tr[aria-rowindex='201']")).to_be_attached()
        page.get_by_role("button", name="Failed", exact=True).click()
        expect(rows).to_have_count(5)
        page.get_by_role("button", name="Failed", exact=True).click()
        expect(page.locator("tr[aria-rowindex='2']")).to_be_attached()


def test_pages_that_were_asked_for_stay_while_a_batch_runs(browser: Browser, server: Stack) -> None:
    """And when the server was away meanwhile."""
    real = {**a_batch(server), "status": "in_progress"}
    pages = [[{**real, "id": f"batch_{number}"} for number in range(first, first + 100)] for first in (0, 100)]
    asked: list[str] = []
    away = False

    def answer(route: Route) -> None:
        asked.append(route.request.url)
        at = 1 if "after=" in route.request.url else 0
        route.fulfill(**refused(503, "storage_unavailable") if away else listed(pages[at], more=at == 0))

    with tab(browser, server.url) as one:
        page = one.page
        page.clock.install()
        page.route("**/v1/batches?*", answer)
        one.go("/batches")
        more = page.get_by_role("button", name="More")
        expect(more).to_be_visible()
        # No frame passes between more rows and the next asking.
        page.clock.pause_at(datetime.now() + timedelta(seconds=60))
        more.click()
        table = page.locator("table[aria-label=Batches]")
        expect(table).to_have_attribute("aria-rowcount", "201")
        before = len(asked)

        def asked_twice_more() -> bool:
            page.clock.fast_forward(3100)
            page.wait_for_timeout(50)
            return len(asked) >= before + 2

        wait_until(asked_twice_more, what="it is asked again while the batch runs")
        page.clock.resume()
        page.evaluate(NEXT_FRAMES)
        expect(table).to_have_attribute("aria-rowcount", "201")
        away = True
        problem = page.get_by_role("alert").filter(has_text="storage_unavailable")
        expect(problem).to_be_visible()
        away = False
        expect(problem).to_have_count(0)
        page.evaluate(NEXT_FRAMES)
        expect(table).to_have_attribute("aria-rowcount", "201")


def test_a_replay_ends_at_the_end_also_from_a_position_in_the_address(browser: Browser, server: Stack) -> None:
    generation_id = Asking(server.url).ask("fake/echo", "one two three four")
    with tab(browser, server.url) as one:
        page = one.go(f"/r/{generation_id}?tab=events#at=1-3")
        expect(page.locator(".replayed")).to_have_text("one two")
        page.get_by_role("button", name="max").click()
        page.get_by_role("button", name="Play", exact=True).click()
        expect(page).to_have_url(re.compile(r"tab=events$"))
        expect(page.get_by_role("button", name="Play", exact=True)).to_be_visible()
        page.evaluate(NEXT_FRAMES)
        expect(page.locator(".replayed")).to_have_text("one two three four")


def test_a_span_is_drawn_on_the_plot_as_it_is_now(browser: Browser, server: Stack) -> None:
    """The plot is the same one for hours and for days; only of days can a span be drawn."""
    rows = [{"requests": 3, "total_tokens": 9, "model": "m", "cost_usd": None}]

    def answer(route: Route) -> None:
        query = parse_qs(urlsplit(route.request.url).query)
        hour = query.get("bucket") == ["hour"]
        data = [{**row, "hour": f"{query['end'][0]}T00"} if hour else {**row, "date": query["end"][0]} for row in rows]
        told = route.fetch().json()
        route.fulfill(json={**told, "data": data})

    with tab(browser, server.url) as one:
        one.page.route("**/v1/usage?*", answer)
        page = one.go("/usage?bucket=hour&show=requests")
        plot = page.locator(".plot .u-over")
        expect(plot).to_be_visible()
        with page.expect_response(re.compile("/v1/usage.*bucket=day")):
            page.get_by_role("button", name="Days", exact=True).click()
        expect(page.get_by_role("group", name="How far back")).to_be_visible()
        page.evaluate(NEXT_FRAMES)
        expect(plot).to_be_visible()  # it is another one while the days are asked for
        drag(page, ".plot .u-over")
        expect(page).to_have_url(re.compile("start="))


def drag(page: Page, selector: str) -> None:
    box = page.locator(selector).bounding_box()
    assert box is not None
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.2, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, y, steps=4)
    page.mouse.up()


# ---- tabs


def test_two_servers_of_one_origin_do_not_tell_each_other_s_tabs(browser: Browser, server: Stack) -> None:
    """A proxy shows another server under /b: here the same one, whose feed is asked for under each name."""

    def other(route: Route) -> None:
        if route.request.url.endswith("/b/v1/events"):
            return route.abort()
        found = route.fetch(url=route.request.url.replace("/b/", "/", 1))
        if "/b/console/assets" in route.request.url:
            return route.fulfill(response=found)
        return route.fulfill(response=found, body=found.text().replace("/console/assets", "/b/console/assets"))

    with tab(browser, server.url) as one:
        one.page.context.route(re.compile(r"^http://[^/]+/b/"), other)
        page = one.go("/help")
        expect(page.locator(".side")).to_be_visible()
        second = one.page.context.new_page()
        with second.expect_request(re.compile("/b/v1/events")):
            second.goto(f"{server.url}/b/console/help")


def test_another_link_put_into_the_address_is_opened(browser: Browser, keyed: Stack) -> None:
    asking = Asking(keyed.url, {"authorization": f"Bearer {KEY_A}"})
    links = []
    for text in ("the first answer", "the second answer"):
        generation_id = asking.ask("fake/echo", text)
        made = asking.http.post(f"/v1/streams/{generation_id}/shares", json={"mode": "view", "expires_in": 3600}).json()
        links.append(made["url"].rpartition("#")[2])
    with tab(browser, keyed.url) as guest:
        page = guest.page
        page.goto(f"{keyed.url}/s/#{links[0]}")
        expect(page.locator(".message.assistant")).to_contain_text("the first answer")
        page.evaluate("(token) => { location.hash = token }", links[1])
        expect(page.locator(".message.assistant")).to_contain_text("the second answer")
