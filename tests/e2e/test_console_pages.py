"""Each page of the console: empty, full, failing, with 10,000 rows, in all sizes and colours; what axe-core finds in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Browser, Route, expect

from shared.cli.embedded import EmbeddedValkey
from tests.e2e.console import MARKS, Asking, tab
from tests.harness.processes import Stack, wait_until
from tests.harness.store import emptied, open_store
from tests.harness.upstream import ScriptedUpstream
from tests.support.names import keys

pytestmark = MARKS
EMPTY = {
    "/": "Nothing runs just now",
    "/requests": "No request yet",
    "/playground": "The answer comes here",
    "/batches": "No batch yet",
    "/batches?tab=files": "No file",
    "/batches?tab=webhooks": "No webhook",
    "/sessions": "No session yet",
    "/usage": "Nothing was used in this time",
    "/operations": "Queue",
    "/operations?tab=providers": "fake",
    "/operations?tab=limits": "No limit",
    "/operations?tab=server": "Whether it can do its work",
    "/help": "Keys",
    "/nothing": "There is no such page",
}
SIZES = {"wide": (1280, 860), "narrow": (390, 844)}
ROWS = 10_000
PAGE = 100


@pytest.fixture(scope="module")
def bare(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """A server that was asked nothing yet."""
    url = emptied(valkey.url.replace("db=0", "db=14"))
    with Stack(url, upstream.base_url, tmp_path_factory.mktemp("bare")) as running:
        yield running


@pytest.fixture(scope="module")
def full(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """A server with some of everything."""
    url = emptied(valkey.url.replace("db=0", "db=13"))
    with Stack(url, upstream.base_url, tmp_path_factory.mktemp("full")) as running:
        fill(running.url)
        yield running


def fill(url: str) -> None:
    asking = Asking(url)
    for number in range(6):
        asking.ask("fake/echo", f"# Title\n\nText *{number}*\n\n```js\nlet x = {number};\n```", metadata={"team": "a"})
    asking.ask("fake/echo?error=429")
    asking.ask("fake/lorem?cut=5")
    asking.ask("fake/lorem?tokens=30&reasoning=10", session_id="ann-1")
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions"}
    line["body"] = {"model": "fake/echo", "messages": [{"role": "user", "content": "Hi"}]}  # type: ignore[assignment]
    files = {"file": ("in.jsonl", json.dumps(line).encode())}
    stored = asking.http.post("/v1/files", data={"purpose": "batch"}, files=files).json()["id"]
    body = {"input_file_id": stored, "endpoint": "/v1/chat/completions", "completion_window": "1h"}
    batch = asking.http.post("/v1/batches", json=body).json()["id"]
    wait_until(lambda: asking.http.get(f"/v1/batches/{batch}").json()["status"] == "completed", 60)
    wait_until(lambda: asking.http.get("/v1/usage").json()["data"], 60)


@pytest.mark.parametrize("path", EMPTY)
def test_an_empty_page_says_what_to_do(browser: Browser, bare: Stack, path: str) -> None:
    with tab(browser, bare.url) as one:
        page = one.go(path)
        expect(page.get_by_text(EMPTY[path]).first).to_be_visible()
        assert one.serious() == []
        one.check()


def test_a_first_request_is_one_click_away(browser: Browser, bare: Stack) -> None:
    with tab(browser, bare.url) as one:
        page = one.go("/batches")
        expect(page.get_by_text("streamspool batch in.jsonl")).to_be_visible()
        page.goto(f"{bare.url}/console/usage")
        page.get_by_role("button", name="Say hello with fake/lorem").click()
        expect(page.locator(".message.assistant")).to_contain_text("ipsum")
        generation_id = page.url.rpartition("/")[2]
        one.check()
    asking = Asking(bare.url)
    wait_until(lambda: asking.http.get("/v1/usage").json()["data"], 120, what="it is settled")
    asking.http.delete(f"/v1/streams/{generation_id}")
    with open_store(bare.redis_url) as store:  # another test may look at the empty page after this one
        store.delete(*store.scan_iter(f"{keys.prefix}:usage*"))


def addresses(stack: Stack) -> list[str]:
    asking = Asking(stack.url)
    listed = asking.http.get("/v1/streams?limit=100").json()["data"]
    done = next(one["id"] for one in listed if one["status"] == "completed" and not one["batch_id"])
    failed = next(one["id"] for one in listed if one["status"] == "failed")
    batch = asking.http.get("/v1/batches").json()["data"][0]["id"]
    tabs = [f"/r/{done}?tab={name}" for name in ("conversation", "timeline", "events", "request")]
    return [
        *(
            "/",
            "/requests",
            "/requests?status=failed",
            "/playground",
            "/batches",
            "/batches?tab=files",
            f"/batches/{batch}",
        ),
        *("/sessions", "/sessions/ann-1", "/usage", "/usage?bucket=hour&by=provider", "/help", "/login"),
        *(f"/operations?tab={name}" for name in ("work", "providers", "keys", "limits", "server", "audit")),
        *tabs,
        f"/r/{failed}?tab=errors",
    ]


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_a_full_page_is_for_everyone(browser: Browser, full: Stack, size: str, colours: Any) -> None:
    """No serious finding of axe-core, nothing wider than the screen, nothing stopped by the policy, no other host."""
    width, height = SIZES[size]
    found: dict[str, Any] = {}
    with tab(browser, full.url, viewport={"width": width, "height": height}, color_scheme=colours) as one:
        for path in addresses(full):
            page = one.go(path)
            expect(page.locator("h1").first).to_be_visible()
            expect(
                page.locator(":is(table, form, pre, dl, .card, .message, input)").locator("visible=true").first
            ).to_be_visible()
            if problems := one.serious():
                found[path] = problems
            if (wide := page.evaluate("document.documentElement.scrollWidth")) > width:
                found[f"{path}, width"] = wide
        assert found == {}
        one.check()


FAILING = [
    "/requests",
    "/batches",
    "/batches?tab=files",
    "/sessions",
    "/usage",
    "/operations?tab=limits",
    "/operations?tab=providers",
]


@pytest.mark.parametrize("path", FAILING)
def test_a_page_that_cannot_ask_says_so_and_goes_on(browser: Browser, full: Stack, path: str) -> None:
    refusing = {"on": True}

    def answer(route: Route) -> None:
        if refusing["on"]:
            error = {"message": "Redis is away.", "type": "server_error", "param": None, "code": "storage_unavailable"}
            route.fulfill(status=503, json={"error": error})
        else:
            route.continue_()

    with tab(browser, full.url) as one:
        one.page.route("**/v1/**", answer)
        page = one.go(path)
        expect(page.get_by_role("alert").first).to_contain_text("Redis is away.")
        assert one.serious() == []
        refusing["on"] = False
        expect(page.get_by_role("alert")).to_have_count(0, timeout=60_000)


def test_what_was_there_stays_when_asking_again_fails(browser: Browser, full: Stack) -> None:
    with tab(browser, full.url) as one:
        page = one.go("/requests")
        rows = page.locator("table[aria-label=Requests] tbody tr")
        expect(rows.first).to_be_visible()
        before = rows.count()
        page.route("**/v1/streams?**", lambda route: route.abort())
        page.get_by_role("button", name="Reload").click()
        expect(page.get_by_role("alert").first).to_contain_text("What is shown is of")
        assert rows.count() == before


def test_ten_thousand_rows_are_a_few_in_the_document(browser: Browser, full: Stack) -> None:
    """The server's own pages, one after the other, with rows that are made here."""
    real = Asking(full.url).http.get("/v1/streams?limit=1").json()["data"][0]

    def answer(route: Route) -> None:
        query = parse_qs(urlsplit(route.request.url).query)
        first = int(query["after"][0].rpartition("-")[2]) + 1 if "after" in query else 0
        data = [
            {**real, "id": f"chatcmpl-{number:032d}", "model": f"m/{number}"} for number in range(first, first + PAGE)
        ]
        last = data[-1]["id"]
        route.fulfill(
            json={"object": "list", "data": data, "first_id": "", "last_id": last, "has_more": first + PAGE < ROWS}
        )

    with tab(browser, full.url) as one:
        one.page.route(re.compile(r"/v1/streams\?(?!.*(since|in_progress|limit=50))"), answer)
        page = one.go("/requests")
        table = page.locator("table[aria-label=Requests]")
        expect(page.locator(".more button").first).to_be_visible()
        page.evaluate(
            """async () => {
                for (;;) {
                    const more = [...document.querySelectorAll('.more button')][0]
                    if (!more) return
                    if (!more.disabled) more.click()
                    await new Promise((done) => setTimeout(done, 5))
                }
            }"""
        )
        expect(table).to_have_attribute("aria-rowcount", str(ROWS + 1))
        assert table.locator("tbody tr").count() < 120
        page.locator(".scroller").first.evaluate("(box) => box.scrollTop = box.scrollHeight")
        expect(table.get_by_text("fake/echo").or_(table.locator("tr[aria-rowindex='10001']")).first).to_be_attached()
        page.keyboard.press("k")  # from none: the last row
        expect(page).to_have_url(re.compile(f"at=chatcmpl-{ROWS - 1:032d}"))


def test_each_number_of_the_tiles_is_that_of_its_route(browser: Browser, full: Stack) -> None:
    asking = Asking(full.url)

    def total() -> dict[str, int]:
        found: dict[str, int] = asking.http.get("/v1/usage").json()["total"]
        return found

    listed = asking.http.get("/v1/streams?limit=100").json()["data"]
    assert len(listed) < 100, "all that was asked here"
    wait_until(lambda: total()["requests"] >= len(listed), what="all is settled that was asked before")
    told = total()
    with tab(browser, full.url) as one:
        page = one.go("/usage")
        tile = page.locator(".tile").filter(has_text="Requests")
        expect(tile.locator(".value")).to_have_text(str(told["requests"]))
        expect(tile.locator(".note")).to_have_text(f"{told['failed_requests']} failed")
        answers = page.locator(".tile").filter(has_text="Answer tokens").locator(".value")
        expect(answers).to_have_text(f"{told['completion_tokens']:,}")


def test_filters_stand_in_the_address_and_back_takes_them_out(browser: Browser, full: Stack) -> None:
    with tab(browser, full.url) as one:
        page = one.go("/requests")
        page.locator(".facets").get_by_role("button", name=re.compile("^failed")).click()
        expect(page).to_have_url(re.compile("status=failed"))
        statuses = page.locator("table[aria-label=Requests] tbody .status")
        expect(statuses.first).to_have_attribute("data-status", "failed")
        listed = Asking(full.url).http.get("/v1/streams?status=failed&limit=100").json()["data"]
        expect(statuses).to_have_count(len(listed))
        page.get_by_role("button", name="Take out status").click()
        expect(statuses).not_to_have_count(len(listed))
        page.go_back()
        expect(statuses).to_have_count(len(listed))
        one.check()


def test_the_list_is_exported(browser: Browser, full: Stack) -> None:
    with tab(browser, full.url, accept_downloads=True) as one:
        page = one.go("/requests?metadata%5Bteam%5D=a")
        expect(page.locator("table[aria-label=Requests] tbody tr").first).to_be_visible()
        texts = {}
        for kind in ("CSV", "JSONL", "As batch input"):
            page.locator(".menu summary").filter(has_text="Export").click()
            with page.expect_download() as download:
                page.get_by_role("button", name=kind).click()
            texts[kind] = Path(download.value.path()).read_text("utf-8")
            page.locator(".menu summary").filter(has_text="Export").click()
        assert texts["CSV"].splitlines()[0].startswith("id,status,model")
        assert len(texts["CSV"].splitlines()) == 7
        assert [json.loads(line)["metadata"] for line in texts["JSONL"].splitlines()] == [{"team": "a"}] * 6
        lines = [json.loads(line) for line in texts["As batch input"].splitlines()]
        assert {line["url"] for line in lines} == {"/v1/chat/completions"}
        assert all(line["body"]["model"] == "fake/echo" for line in lines)


def test_the_playground_holds_its_form_and_its_answers_in_the_address(browser: Browser, full: Stack) -> None:
    with tab(browser, full.url) as one:
        page = one.go("/playground")
        page.get_by_role("textbox", name="Message 1").fill("Say this back")
        page.get_by_role("combobox", name="Model 1").fill("fake/echo")
        page.get_by_role("combobox", name="Model 1").blur()
        page.get_by_role("button", name="Add").click()
        page.get_by_role("combobox", name="Model 2").fill("fake/lorem?tokens=5")
        page.get_by_role("combobox", name="Model 2").blur()
        page.get_by_role("group", name="Break it").nth(1).get_by_role("button", name="cut").click()
        page.get_by_role("button", name="Send").click()
        answers = page.locator(".answers .card")
        expect(answers.first).to_contain_text("Say this back")
        expect(answers.nth(1).locator(".status")).to_have_attribute("data-status", re.compile("failed|completed"))
        address = page.url
        page.goto(f"{full.url}/console/help")
        page.goto(address)
        expect(page.get_by_role("textbox", name="Message 1")).to_have_value("Say this back")
        expect(answers.first).to_contain_text("Say this back")
        one.check()


def test_a_request_is_opened_in_the_playground(browser: Browser, full: Stack) -> None:
    asking = Asking(full.url)
    generation_id = asking.ask("fake/echo", "take this along", temperature=0.5)
    with tab(browser, full.url) as one:
        page = one.go(f"/r/{generation_id}")
        page.get_by_role("button", name="Playground").click()
        expect(page.get_by_role("textbox", name="Message 1")).to_have_value("take this along")
        expect(page.get_by_label("temperature")).to_have_value("0.5")


def test_the_scrubber_shows_the_answer_as_it_was_and_stands_in_the_address(browser: Browser, full: Stack) -> None:
    generation_id = Asking(full.url).ask("fake/echo", "one two three four")
    with tab(browser, full.url) as one:
        page = one.go(f"/r/{generation_id}?tab=events#at=1-3")
        shown = page.locator(".replayed")
        expect(shown).to_have_text("one two")
        page.locator("input[type=range]").focus()
        page.keyboard.press("ArrowRight")
        expect(shown).to_have_text("one two three")
        expect(page).to_have_url(re.compile("#at=1-4"))
        page.get_by_role("button", name="max").click()
        page.get_by_role("button", name="Play", exact=True).click()
        expect(shown).to_have_text("one two three four")
        one.check()


def test_what_the_history_knows_of_an_answer_is_shown_once_its_text_is_gone(browser: Browser, full: Stack) -> None:
    asking = Asking(full.url)
    known = asking.state(asking.ask("fake/echo", "gone"))
    error = {"message": "The text is gone.", "type": "invalid_request_error", "param": None, "code": "stream_expired"}

    def answer(route: Route) -> None:
        route.fulfill(status=404, json={"error": {**error, "stream": known}})

    with tab(browser, full.url) as one:
        one.page.route(f"**/v1/streams/{known['id']}*", answer)
        page = one.go(f"/r/{known['id']}")
        expect(page.get_by_role("status").filter(has_text="not kept any more")).to_be_visible()
        expect(page.locator(".figures")).to_contain_text(known["id"])
        expect(page.get_by_role("table", name="Waterfall of the request")).to_contain_text("Settled: completed")
        assert one.serious() == []
        one.check()


def test_chosen_columns_are_kept(browser: Browser, full: Stack) -> None:
    with tab(browser, full.url) as one:
        page = one.go("/requests")
        headers = page.locator("table[aria-label=Requests] thead")
        expect(headers).to_contain_text("Cost")
        page.locator(".menu summary").filter(has_text="Columns").click()
        page.get_by_role("checkbox", name="Cost").uncheck()
        page.get_by_role("checkbox", name="Finish").check()
        for _ in range(2):
            expect(headers).not_to_contain_text("Cost")
            expect(headers).to_contain_text("Finish")
            page.reload()
        one.check()


def test_budgets_are_shown_in_dollars(browser: Browser, full: Stack) -> None:
    budget = {"period": "month", "now": "2026-11", "hard": True, "limit_usd": 200.0, "spent_usd": 41.7}
    key = {"id": "key_1", "limits": {"running": 5}, "used": {"running": 2}, "budgets": []}
    told = {"object": "limits", "tenant": "local", "limits": {}, "used": {}, "budgets": [budget], "key": key}
    with tab(browser, full.url) as one:
        one.page.route("**/v1/limits", lambda route: route.fulfill(json=told))
        page = one.go("/usage")
        expect(page.locator(".card").filter(has_text="Budgets")).to_contain_text("$41.70 of $200")
        expect(page.locator(".card").filter(has_text="what is used of them now")).to_contain_text("2 of 5")
        assert one.serious() == []


def test_the_server_page_has_what_redis_says_and_what_is_set(browser: Browser, full: Stack) -> None:
    told = Asking(full.url).http.get("/v1/redis").json()
    with tab(browser, full.url) as one:
        page = one.go("/operations?tab=server")
        card = page.locator(".card").filter(has_text="Commands a second")
        expect(card).to_contain_text(told["version"])
        expect(card).to_contain_text(f"0 keys · {told['eviction_policy']}")
        settings = page.locator("table[aria-label=Settings] tbody tr")
        expect(settings.filter(has_text="STREAMSPOOL_CONFIG")).to_have_count(0)
        expect(settings.filter(has_text="REDIS_URL")).to_contain_text("environment")
        before = settings.count()
        page.get_by_role("button", name="Defaults, too").click()
        expect(settings.filter(has_text="STREAMSPOOL_RETENTION_S")).to_contain_text("default")
        assert settings.count() > before
        one.check()


def test_a_worker_is_drained_and_resumed(browser: Browser, full: Stack) -> None:
    with tab(browser, full.url) as one:
        page = one.go("/operations")
        row = page.locator("table[aria-label=Workers] tbody tr")
        row.get_by_role("button", name="Drain").click()
        expect(row.locator(".status")).to_have_attribute("data-status", "resting")
        row.get_by_role("button", name="Resume").click()
        expect(row.locator(".status")).to_have_attribute("data-status", "active")
        one.check()


def test_what_has_ended_is_counted_as_a_whole_where_facets_are_of_the_newest(browser: Browser, full: Stack) -> None:
    def facets(route: Route) -> None:
        route.fulfill(json={**route.fetch().json(), "partial": True, "looked_at": 2000})

    def counts(route: Route) -> None:
        by = parse_qs(urlsplit(route.request.url).query)["by"][0]
        data = [{"value": "completed", "count": 987_654}] if by == "status" else []
        route.fulfill(json={"object": "stream.counts", "by": by, "data": data})

    with tab(browser, full.url) as one:
        one.page.route("**/v1/streams/facets*", facets)
        one.page.route("**/v1/streams/counts*", counts)
        page = one.go("/requests")
        expect(page.locator(".facets")).to_contain_text("Counts are of the newest 2,000")
        page.get_by_role("button", name="Count all").click()
        expect(page.locator(".facets").get_by_role("button", name=re.compile("^completed"))).to_contain_text("987,654")
        one.check()
