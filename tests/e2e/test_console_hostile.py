"""Answers that were made to do harm: they are shown, and do nothing."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.console import MARKS, Asking, tab
from tests.harness.processes import Stack
from tests.harness.upstream import ScriptedUpstream, chunk, ending

pytestmark = MARKS
FOREIGN = "http://127.0.0.2:9/stolen"
ANSWERS = {
    "script": "<script>window.broken = 1</script><svg onload='window.broken = 1'></svg> end-of-it",
    "image": f"<img src='{FOREIGN}?a' onerror='window.broken = 1'> ![x]({FOREIGN}?b) end-of-it",
    "frame": f"<iframe src='{FOREIGN}'></iframe><link rel=stylesheet href='{FOREIGN}'> end-of-it",
    "style": "<style>body{display:none}</style><p style='position:fixed;inset:0'>over all</p> end-of-it",
    "link": "[click](javascript:window.broken=1) <a href='javascript:window.broken=1'>x</a> [d](data:text/html,x) end-of-it",
    "form": "<form id=app name=getElementById><input name=body></form> <base href='http://127.0.0.2:9/'> end-of-it",
    "math": "<math><mi//xlink:href='data:x,<script>window.broken=1</script>'></math> end-of-it",
    "data": "<![CDATA[<script>window.broken=1</script>]]> <!--><script>window.broken=1</script>--> end-of-it",
    "direction": "\u202egnihtyreve\u2066 \u200f\u05d0\u05d1 end-of-it",
    "terminal": "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x00 end-of-it",
    "a long line": "x" * 1_000_000 + " end-of-it",
    "headings": "\n\n".join(f"# heading {number}" for number in range(10_000)) + "\n\nend-of-it",
    "nested": ">" * 2000 + " deep\n\n" + "- " * 500 + "x\n\nend-of-it",
    "entities": "&lt;script&gt;window.broken=1&lt;/script&gt; &#x3c;img src=x onerror=window.broken=1&#x3e; end-of-it",
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_hostile_answer_is_shown_and_does_nothing(
    browser: Browser, stack: Stack, upstream: ScriptedUpstream, kind: str
) -> None:
    text, name = ANSWERS[kind], f"hostile-{kind.replace(' ', '-')}"
    pieces = [text[at : at + 50_000] for at in range(0, len(text), 50_000)]
    upstream.script(name, [chunk({"role": "assistant", "content": ""}), *map(chunk, pieces), *ending()])
    generation_id = Asking(stack.url).ask(f"scripted/{name}", text, metadata={"note": text[:500]})
    with tab(browser, stack.url) as one:
        page = one.go(f"/r/{generation_id}")
        expect(page.locator(".message.assistant")).to_contain_text("end-of-it", timeout=60_000)
        before = one.foreign()
        assert before == []
        for form in ("Raw", "Markdown"):
            page.get_by_role("button", name=form, exact=True).click()
            expect(page.locator(".message.assistant")).to_contain_text("end-of-it", timeout=60_000)
        assert page.evaluate("typeof window.broken") == "undefined"
        for bad in (
            "script",
            "img",
            "iframe",
            "style",
            "link",
            "base",
            "form",
            "svg[onload]",
            "[id]",
            "[name]",
            "[style]",
        ):
            assert page.locator(f".message {bad}").count() == 0, bad
        links = page.locator(".message a").evaluate_all("(all) => all.map((one) => one.getAttribute('href') ?? '')")
        assert [link for link in links if link and not link.startswith(("http://", "https://", "mailto:"))] == []
        assert page.evaluate("document.title").startswith("Request")
        page.goto(f"{stack.url}/console/requests?at={generation_id}")
        expect(page.get_by_role("row").filter(has_text=f"scripted/{name}").first).to_be_visible()
        page.keyboard.press("Space")
        expect(page.locator(".peek")).to_contain_text("end-of-it", timeout=60_000)
        page.goto(f"{stack.url}/console/r/{generation_id}?tab=events")
        expect(page.get_by_role("table", name="Frames")).to_be_visible()
        assert page.evaluate("typeof window.broken") == "undefined"
        one.check()
