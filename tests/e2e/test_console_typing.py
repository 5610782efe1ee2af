"""What is being typed is the reader's: nothing that arrives meanwhile writes over it, and it counts when it is sent.

Each test draws the page while a field is in use, by answers that come when the test wants it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, Request, expect

from shared.cli.embedded import EmbeddedValkey
from tests.e2e.console import MARKS, NEXT_FRAMES, Asking, Held, tab
from tests.harness.processes import Stack
from tests.harness.store import emptied
from tests.harness.upstream import ScriptedUpstream
from tests.support.wire import ADMIN_KEY

pytestmark = MARKS


@pytest.fixture(scope="module")
def server(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    url = emptied(valkey.url.replace("db=0", "db=14"))
    with Stack(url, upstream.base_url, tmp_path_factory.mktemp("typing")) as running:
        yield running


def sent(page: Page, act: Callable[[], None]) -> dict[str, Any]:
    """The body of the chat request that `act` sends."""

    def is_chat(request: Request) -> bool:
        return request.method == "POST" and request.url.endswith("/v1/chat/completions")

    with page.expect_request(is_chat) as asked:
        act()
    body: dict[str, Any] = json.loads(asked.value.post_data or "")
    return body


PLAYGROUND = {
    "the model": ("combobox", "Model 1", "fake/echo", lambda body: body["model"]),
    "the session": ("textbox", "Session (empty: none)", "ann-7", lambda body: body["session_id"]),
    "a number": ("spinbutton", "temperature", "0.4", lambda body: str(body["temperature"])),
    "a list": ("textbox", "tools, a list in JSON", "[]", lambda body: json.dumps(body["tools"])),
    "an object": ("textbox", "metadata, an object in JSON", '{"a": "b"}', lambda body: json.dumps(body["metadata"])),
}


@pytest.mark.parametrize("name", PLAYGROUND)
def test_what_is_typed_in_the_playground_stays_when_the_models_arrive(
    browser: Browser, server: Stack, name: str
) -> None:
    role, label, text, found = PLAYGROUND[name]
    with tab(browser, server.url) as one:
        models = Held(one.page, "**/v1/models")
        page = one.go("/playground")
        field: Locator = page.get_by_role(role, name=label, exact=True)  # type: ignore[arg-type]
        field.fill(text)
        models.let_go()
        expect(page.locator("datalist option").first).to_be_attached()
        expect(field).to_have_value(text)
        assert found(sent(page, page.get_by_role("button", name="Send").click)) == text
        one.check()


@pytest.mark.parametrize("name", PLAYGROUND)
def test_control_and_enter_send_what_stands_in_the_field(browser: Browser, server: Stack, name: str) -> None:
    role, label, text, found = PLAYGROUND[name]
    with tab(browser, server.url) as one:
        page = one.go("/playground")
        field: Locator = page.get_by_role(role, name=label, exact=True)  # type: ignore[arg-type]
        field.fill(text)
        assert found(sent(page, lambda: field.press("Control+Enter"))) == text
        status = page.locator(".answers .card .status")
        expect(status).to_be_visible()
        field.blur()  # which changes nothing that was not sent
        page.evaluate(NEXT_FRAMES)
        expect(status).to_be_visible()
        one.check()


def test_one_request_goes_out_however_often_it_is_sent_before_it_is_answered(browser: Browser, server: Stack) -> None:
    with tab(browser, server.url) as one:
        chat = Held(one.page, "**/v1/chat/completions")
        page = one.go("/playground")
        field = page.get_by_role("textbox", name="Message 1")
        field.fill("once")
        for _ in range(3):
            field.press("Control+Enter")
        expect(page.get_by_role("button", name="Send")).to_be_disabled()
        chat.let_go()
        expect(page.locator(".answers .card .status")).to_be_visible()
        assert len([url for url in one.asked if url.endswith("/v1/chat/completions")]) == 1
        one.check()


def test_answers_are_not_shown_under_models_that_were_not_asked(browser: Browser, server: Stack) -> None:
    with tab(browser, server.url) as one:
        chat = Held(one.page, "**/v1/chat/completions")
        page = one.go("/playground")
        page.get_by_role("button", name="Send").click()
        page.get_by_role("combobox", name="Model 1").fill("fake/echo")
        page.get_by_role("combobox", name="Model 1").blur()
        chat.let_go()
        expect(page.get_by_text("The models are others by now")).to_be_visible()
        expect(page.locator(".answers .card")).to_contain_text("The answer comes here.")
        one.check()


def test_a_number_that_cannot_be_read_stays_and_is_not_sent(browser: Browser, server: Stack) -> None:
    with tab(browser, server.url) as one:
        page = one.go("/playground")
        field = page.get_by_label("temperature")
        field.press_sequentially("1e")
        page.get_by_role("button", name="Send").click()
        expect(page.get_by_text("Not sent: a field cannot be read as it is.")).to_be_visible()
        expect(field).to_have_attribute("aria-invalid", "true")
        field.press("Control+a")
        field.press_sequentially("1e0")
        field.blur()
        expect(field).not_to_have_attribute("aria-invalid", "true")
        one.check()


def test_json_that_cannot_be_read_stays_and_is_not_sent_and_new_takes_it_away(browser: Browser, server: Stack) -> None:
    with tab(browser, server.url) as one:
        page = one.go("/playground")
        page.get_by_role("button", name="JSON", exact=True).click()
        field = page.get_by_role("textbox", name="Request as JSON")
        expect(field).to_have_value(re.compile("about the sea"))
        field.fill('{"messages": [')
        page.get_by_role("button", name="Send").click()
        expect(page.get_by_text("Not sent: a field cannot be read as it is.")).to_be_visible()
        expect(page.get_by_role("alert")).to_be_visible()
        expect(field).to_have_value('{"messages": [')
        expect(field).to_be_focused()
        assert not [url for url in one.asked if url.endswith("/v1/chat/completions")]
        page.get_by_role("button", name="New", exact=True).click()
        expect(page.get_by_role("alert")).to_have_count(0)
        expect(field).to_have_value(re.compile("about the sea"))
        field.fill('{"messages": [{"role": "user", "content": "mended"}], "seed": 7}')
        field.blur()
        expect(page.get_by_role("spinbutton", name="seed")).to_have_value("7")
        page.get_by_role("spinbutton", name="seed").fill("8")
        page.get_by_role("spinbutton", name="seed").blur()
        expect(field).to_have_value(re.compile('"seed": 8'))  # a text area that was written in follows the form, too
        one.check()


def test_another_form_in_the_address_is_the_form_and_no_form_in_it_changes_none(
    browser: Browser, server: Stack
) -> None:
    with tab(browser, server.url) as one:
        page = one.go("/playground")
        message = page.get_by_role("textbox", name="Message 1")
        message.fill("the first")
        expect(page).to_have_url(re.compile("the%20first"))
        address = page.url
        page.evaluate("(hash) => { location.hash = hash }", address.partition("#")[2].replace("first", "second"))
        expect(message).to_have_value("the second")
        page.go_back()
        expect(message).to_have_value("the first")
        page.get_by_role("navigation", name="Pages").get_by_role("link", name="Playground").click()
        expect(page).to_have_url(address)
        expect(message).to_have_value("the first")
        one.check()


@pytest.mark.parametrize("rows", [[], [{"requests": 3, "total_tokens": 9, "model": "m", "cost_usd": None}]])
def test_a_name_of_the_metadata_stays_while_usage_is_asked_again(
    browser: Browser, server: Stack, rows: list[dict[str, Any]]
) -> None:
    """Whether something was used or nothing."""
    real = Asking(server.url).http.get("/v1/usage").json()
    with tab(browser, server.url) as one:
        usage = Held(one.page, "**/v1/usage?*")
        page = one.go("/usage")
        field = page.get_by_role("textbox", name="Grouped by a name of the metadata")
        field.fill("team")
        day = datetime.now(UTC).date().isoformat()
        usage.let_go(json={**real, "data": [{**row, "date": day} for row in rows]})
        told = "By group" if rows else "Nothing was used in this time"
        expect(page.get_by_role("heading", name=told)).to_be_visible()
        expect(field).to_have_value("team")
        field.press("Enter")
        expect(page).to_have_url(re.compile(r"by=metadata\.team"))
        expect(field).to_have_value("team")
        one.check()


def test_a_range_stays_while_the_list_arrives(browser: Browser, server: Stack) -> None:
    Asking(server.url).ask("fake/echo", "one that is listed")
    with tab(browser, server.url) as one:
        held = Held(one.page, re.compile(r"/v1/streams/facets"))
        page = one.go("/requests")
        page.locator("summary").filter(has_text="Ranges").click()
        field = page.get_by_role("spinbutton", name="Tokens, min")
        field.fill("3")
        held.let_go()
        expect(page.locator(".facets").get_by_role("button", name=re.compile("^completed"))).to_be_visible()
        expect(field).to_have_value("3")
        field.blur()
        expect(page).to_have_url(re.compile("min_tokens=3"))
        expect(field).to_have_value("3")


def test_the_window_of_a_batch_stays_while_the_batches_are_asked_for(browser: Browser, server: Stack) -> None:
    with tab(browser, server.url) as one:
        held = Held(one.page, "**/v1/batches?*")
        page = one.go("/batches")
        page.locator("summary").filter(has_text="New batch").click()
        field = page.get_by_role("textbox", name="Window")
        field.fill("48h")
        held.let_go()
        expect(page.get_by_text("No batch yet")).to_be_visible()
        expect(field).to_have_value("48h")


def test_a_tenant_stays_while_the_limits_are_asked_again(
    browser: Browser, valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    url = emptied(valkey.url.replace("db=0", "db=11"))
    keys = {"STREAMSPOOL_ADMIN_KEYS": f"ops:{ADMIN_KEY}"}
    with Stack(url, upstream.base_url, tmp_path, **keys) as keyed, tab(browser, keyed.url) as one:
        limits = Held(one.page, "**/v1/limits*")
        page = one.go("/operations?tab=limits")
        page.get_by_label("Key", exact=True).fill(ADMIN_KEY)
        page.get_by_role("button", name="Sign in").click()
        field = page.get_by_role("textbox", name="Tenant")
        field.fill("ann")
        limits.let_go()
        expect(field).to_have_value("ann")
        one.page.unroute("**/v1/limits*")
        field.press("Enter")
        expect(page.locator(".card").filter(has_text="In force").locator("small")).to_have_text("ann")
