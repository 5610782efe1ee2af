"""WebSockets whose API is killed, started again, or told to stop: answers go on, and none is taken for whole
that is not."""

from __future__ import annotations

import signal

import pytest
from websockets.exceptions import ConnectionClosed

from tests.chaos.test_responses import Watching, found
from tests.harness.processes import wait_until
from tests.harness.upstream import Pause, ScriptedUpstream, ending, whole, words
from tests.support.fleet import Fleet
from tests.support.responses import joined, text_of
from tests.support.sockets import Socket

SETTINGS = {"STREAMSPOOL_KEEPALIVE_S": "0.5", "STREAMSPOOL_DRAIN_S": "8"}
PROCESSES = ("api", "api-2")


def closed_with(socket: Socket) -> int | None:
    """Reads until the socket is closed: the code, None where it was cut."""
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            socket.next()
    return closed.value.rcvd.code if closed.value.rcvd is not None else None


def test_f69_lanes_of_a_killed_api_are_resumed_at_another_and_gone_on_from_on_a_new_socket(
    fleet: Fleet, upstream: ScriptedUpstream
) -> None:
    pauses = [Pause(), Pause()]
    for number, pause in enumerate(pauses):
        upstream.script(f"sockets-{number}", [*words(5), pause, *words(9)[6:], *ending()])
    with Socket(fleet.url) as socket:
        for number in range(2):
            socket.send(model=f"scripted/sockets-{number}", stream_id=str(number))
        while not all(joined(socket.told.get(str(number), [])) == whole(5) for number in range(2)):
            socket.next()
        fleet.kill("api")
        assert closed_with(socket) is None
    told = [socket.told[str(number)] for number in range(2)]
    for pause in pauses:
        pause.go()
    for lane in told:
        response_id = lane[0]["response"]["id"]
        rest = Watching([fleet.at("api-2")], response_id, lane[-1]["sequence_number"]).end()
        plain = [{name: value for name, value in event.items() if name != "stream_id"} for event in lane]
        assert joined([*plain, *rest]) == whole(9)
        assert [*plain, *rest] == Watching([fleet.at("api-2")], response_id).end()
    fleet.heal("api-2")
    last = told[0][0]["response"]["id"]
    with Socket(fleet.url) as socket:
        assert text_of(socket.whole(input="and on", previous_response_id=last)) == "and on"


def test_f70_a_server_that_stops_lets_answers_end_and_takes_no_new_ones(
    fleet: Fleet, upstream: ScriptedUpstream
) -> None:
    pause = Pause()
    upstream.script("sockets-ends", [*words(2), pause, *words(4)[3:], *ending()])
    with Socket(fleet.url) as idle, Socket(fleet.url) as busy:
        busy.send(model="scripted/sockets-ends")
        busy.until("response.output_text.delta")
        fleet.kill("api", signal.SIGTERM)
        assert closed_with(idle) == 1012
        busy.send(stream_id="late")
        refused = busy.until("error", "late")
        assert (refused["status"], refused["error"]["code"]) == (503, "draining")
        assert refused["error"]["headers"]["x-should-retry"] == "true"
        pause.go()
        assert text_of(busy.until("response.completed")["response"]) == whole(4)
        assert closed_with(busy) == 1012
    wait_until(lambda: not fleet.alive("api"))
    fleet.heal("api-2")


def test_f70_an_answer_that_does_not_end_in_time_is_told_to_be_cut(fleet: Fleet, upstream: ScriptedUpstream) -> None:
    pause = Pause()
    upstream.script("sockets-cut", [*words(2), pause, *words(4)[3:], *ending()])
    with Socket(fleet.url) as socket:
        socket.send(model="scripted/sockets-cut", stream_id="a")
        socket.until("response.output_text.delta", "a")
        fleet.kill("api", signal.SIGTERM)
        error = socket.until("error", "a")
        assert (error["status"], error["error"]["code"]) == (503, "draining")
        assert closed_with(socket) == 1012
    wait_until(lambda: not fleet.alive("api"))
    pause.go()
    response_id = socket.told["a"][0]["response"]["id"]
    wait_until(lambda: found(fleet, response_id, fleet.at("api-2"))["status"] == "completed")
    fleet.heal("api-2")
