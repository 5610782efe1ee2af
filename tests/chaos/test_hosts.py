"""An installation on several hosts, and a process, or the cable, of one of them lost: rows F100 to F103 of RELIABILITY.md.

Each host is a network namespace. Where none can be made, they are addresses of loopback, and the tests say so and why; then a
pulled cable is that all processes of the host stop.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.harness.processes import wait_until
from tests.harness.shown import Shown
from tests.harness.upstream import Pause, Script, ending, whole, words
from tests.support.batch import ended, jsonl, line, results, upload
from tests.support.judge import Verdict
from tests.support.site import PLACES, Site, paced

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="namespaces, and the addresses of its loopback"),
    pytest.mark.timeout(300),
]
STREAMS = PLACES + 2
"""So many at once that no worker has places for all of them."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("site")) as running:
        yield running


@pytest.fixture
def site(built: Site, capsys: pytest.CaptureFixture[str]) -> Site:
    if built.hosts.instead:
        with capsys.disabled():
            print(f"\nhosts are addresses of loopback, since there is no namespace: {built.hosts.instead}")
    built.heal()
    return built


def wrong_with(viewer: Shown, text: str) -> str:
    """What is wrong with a viewer who ought to have seen the answer; empty if nothing is."""
    found = [*viewer.wrong, *([] if viewer.ended and viewer.error is None else [f"{viewer.ended} {viewer.error}"])]
    if viewer.text != text or viewer.finish != ["stop"]:
        found.append(f"{len(viewer.text)} of {len(text)} characters, {viewer.finish}")
    return "; ".join(found)


def test_f100_everything_that_the_demo_shows_over_hosts(site: Site) -> None:
    """Viewers live, by GET, late, in the middle and after it, through both APIs; that of host `a` is killed under them."""
    held = Pause()
    model, script = site.script(paced(240, 0.01, (120, held)))
    a, b = site.urls["a"], site.urls["b"]
    body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
    live = site.judges.post([a, b], body, resume=True)
    wait_until(lambda: live.says("w2 "), 60, "the live one reads")
    viewers = [live, site.judges.watch([b, a], live.id), site.judges.watch([a, b], live.id)]
    wait_until(lambda: live.says("w40 "), 60)
    viewers.append(site.judges.watch([a, b], live.id, view="chat/completions"))
    wait_until(lambda: live.says("w70 "), 60)
    middle = [site.judges.watch(urls, live.id, after="1-50") for urls in ([a, b], [b, a])]
    wait_until(lambda: all(one.says("w119 ") for one in [*viewers, *middle]), 60, "all read")
    site.kill("a", "api")
    viewers.append(site.judges.watch([a, b], live.id))
    held.go()
    text = whole(240)
    for one in [*viewers, *middle]:
        one.end(90)
    assert [found for one in viewers if (found := wrong_with(one, text))] == []
    rest = text[len(whole(49)) :]  # the first chunk has the role
    assert [found for one in middle if (found := wrong_with(one, rest))] == []
    assert live.connects > 1
    assert len(script.calls) == 1
    site.heal()
    for name in site.urls:
        state = site.state(name, live.id)
        assert (state["status"], state["attempts"]) == ("completed", 1)
        with site.http(name) as http:
            stored = http.get(f"/v1/chat/completions/{live.id}").json()
            assert stored["choices"][0]["message"]["content"] == text
            assert live.id in {one["id"] for one in http.get("/v1/streams").json()["data"]}


def streams(site: Site, held: Pause) -> tuple[list[tuple[Verdict, Script]], set[str]]:
    """Answers that run on both workers and have stopped in their middle; with them, which of them run on host `c`."""
    found = []
    for number in range(STREAMS):
        model, script = site.script(paced(40, 0.01, (20, held)))
        first, second = [site.urls["ab"[(number + step) % 2]] for step in range(2)]
        generation_id = site.ask("ab"[number % 2], model)
        found.append((site.judges.watch([first, second], generation_id), script))
    wait_until(lambda: all(viewer.says("w19 ") for viewer, _ in found), 60, "all speak")
    there = site.claimed("c") & {viewer.id for viewer, _ in found}
    assert len(there) >= STREAMS - PLACES
    return found, there


def restarted(site: Site, found: list[tuple[Verdict, Script]], there: set[str]) -> None:
    """All ended whole: those that ran on the lost host with a second attempt, which their viewers were told of."""
    for viewer, script in found:
        viewer.end(90)
        lost = viewer.id in there
        assert wrong_with(viewer, whole(40)) == ""
        assert (viewer.attempts, len(script.calls)) == (([2], 2) if lost else ([], 1))
        assert site.state("b", viewer.id)["attempts"] == 1 + lost


def test_f101_the_worker_of_a_host_is_killed(site: Site) -> None:
    held = Pause()
    found, there = streams(site, held)
    site.kill("c", "worker")
    held.go()
    restarted(site, found, there)


def test_f102_what_is_stored_through_one_host_is_read_through_another(site: Site) -> None:
    """Files of a batch, whose lines both workers ask; a large request; a session; an idempotency key."""
    held = Pause()
    model, script = site.script([*words(3), held, *ending()])
    before = {host: site.claimed(host) for host in "bc"}
    content = jsonl(line(f"line-{number}", model, f"prompt of line {number}") for number in range(40))
    with site.http("a") as a, site.http("b") as b:
        file_id = upload(a, content)
        assert b.get(f"/v1/files/{file_id}/content").content == content
        wanted = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        started = b.post("/v1/batches", json=wanted)
        assert started.status_code == 200, started.text
        wait_until(lambda: all(site.claimed(host) - before[host] for host in "bc"), 60, "both workers ask lines")
        held.go()
        batch = ended(a, started.json()["id"], 90)
        assert (batch["status"], batch["request_counts"]) == ("completed", {"total": 40, "completed": 40, "failed": 0})
        lines = results(a, batch["output_file_id"])
        assert lines == results(b, batch["output_file_id"])
        assert {one["response"]["body"]["choices"][0]["message"]["content"] for one in lines.values()} == {whole(3)}
        assert len(script.calls) == 40

        large = "a word, " * 40_000  # more than Redis is given
        site.ask("a", model, messages=[{"role": "user", "content": large}], session_id="site")
        turn = {"model": model, "messages": [{"role": "user", "content": "and now?"}], "session_id": "site"}
        for _ in range(2):
            answer = b.post("/v1/chat/completions", json=turn, headers={"idempotency-key": "once"})
            assert answer.status_code == 200, answer.text
        said = [message["content"] for message in script.calls[-1]["messages"]]
        assert said == [large, whole(3), "and now?"]
        assert len(script.calls) == 42
        kept = [message["content"] for message in a.get("/v1/sessions/site/messages").json()["data"]]
        assert kept == [*said, whole(3)]
    assert site.s3.names()
    for host in site.stacks:
        for path in (site.directory / host).rglob("*"):
            assert not path.is_file() or b"prompt of line" not in path.read_bytes(), path


def test_f103_the_cable_of_a_host_with_a_worker_is_pulled(site: Site) -> None:
    """It hears nothing of its lease having lapsed; once it is back, what it says is refused, and it works on."""
    held = Pause()
    found, there = streams(site, held)
    with site.unplugged("c"):
        held.go()
        restarted(site, found, there)
    again = Pause()
    found, _ = streams(site, again)  # which needs the places of both
    again.go()
    restarted(site, found, set())


def test_f103_the_cable_of_a_host_with_an_api_is_pulled(site: Site) -> None:
    """Its viewers hear nothing more, go elsewhere, and are shown the rest; once it is back, it serves."""
    held = Pause()
    found, _ = streams(site, held)
    with site.unplugged("a"):
        held.go()
        restarted(site, found, set())
    site.heal()
    late = site.judges.watch([site.urls["a"]], found[0][0].id).end(60)
    assert wrong_with(late, whole(40)) == ""
