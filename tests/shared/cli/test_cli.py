"""The command line, against a stand-in API that follows a script; settings and usage need no server at all."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from shared import __version__
from shared.cli import main as cli
from shared.cli.client import Event
from shared.cli.screen import Screen
from tests.harness.processes import free_port
from tests.support.stand_in import (
    DONE,
    ID,
    KEEPALIVE,
    STATE,
    WAIT_S,
    StandIn,
    chunk,
    command,
    run,
    stand_ins,
)


@pytest.fixture
def stand_in() -> Iterator[Callable[[dict[str, list[Any]]], StandIn]]:
    with stand_ins() as start:
        yield start


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [*os.environ]:
        if name.startswith("STREAMSPOOL_") or name.endswith("_API_KEY") or name in ("REDIS_URL", "HOST", "PORT"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("STREAMSPOOL_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


# ---- usage and settings


def test_help_and_version_and_nothing_at_all() -> None:
    runner = CliRunner()
    for words, code in ((["--help"], 0), (["-h"], 0), (["chat", "-h"], 0), (["--version"], 0), ([], 2)):
        assert runner.invoke(cli.app, words).exit_code == code, words
    assert runner.invoke(cli.app, ["--version"]).output == f"streamspool {__version__}\n"
    listed = runner.invoke(cli.app, ["--help"]).output
    for name in ["up", "api", "worker", "demo", "chat", "watch", "ls", "cancel", "models", "config", "doctor"]:
        assert f" {name} " in listed


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["chat", "hi"],
        ["chat", "hi", "-m", "fake/echo", "-o", "novalue"],
        ["up", "--workers", "0"],
        ["up", "--port", "70000"],
        ["watch", ID, "--from", "later"],
        ["ls", "--limit", "0"],
    ],
)
def test_wrong_usage_is_exit_code_2(words: list[str]) -> None:
    assert CliRunner().invoke(cli.app, words).exit_code == 2


@pytest.mark.parametrize("words", [["config"], ["up"], ["api"], ["ls"], ["doctor"]])
def test_all_wrong_settings_are_said_at_once_without_their_values(words: list[str]) -> None:
    done = run(*words, PORT="99999", STREAMSPOOL_LEASE_S="soon", STREAMSPOOL_API_KEYS="hush-hush")
    assert done.returncode == 2
    assert [line.partition(":")[0] for line in sorted(done.stderr.splitlines())] == [
        "PORT",
        "STREAMSPOOL_API_KEYS",
        "STREAMSPOOL_LEASE_S",
    ]
    assert "hush" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "content"), [("streamspool.toml", "not toml ["), ("streamspool.toml", "[providers.x]\nbase_url = 'ftp:'")]
)
def test_a_wrong_file_is_a_wrong_setting(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    done = run("config")
    assert done.returncode == 2
    assert done.stderr


@pytest.mark.parametrize("end", ["api", "worker", "api --apis 2"])
def test_an_end_alone_needs_a_redis(end: str) -> None:
    done = run(*end.split())
    assert done.returncode == 2
    assert "REDIS_URL" in done.stderr
    assert "streamspool up" in done.stderr


def test_config_shows_what_is_in_effect_and_no_secret(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("STREAMSPOOL_LEASE_S=7\n")
    done = run("config", STREAMSPOOL_API_KEYS="team:hush-hush", REDIS_URL="redis://me:hush-hush@db:6379/0", PORT="81")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    for line in ("PORT=81", "STREAMSPOOL_LEASE_S=7.0", "STREAMSPOOL_API_KEYS=team:****", "REDIS_URL=redis://db:6379/0"):
        assert line in lines
    assert "hush" not in done.stdout + done.stderr


def test_config_writes_settings_as_the_environment_takes_them() -> None:
    given = {
        "STREAMSPOOL_MAX_TOKENS_PER_S": "20.0,team:50.0",
        "STREAMSPOOL_WEBHOOK_ALLOW": "hooks.internal,10.1.0.0/16",
        "STREAMSPOOL_MODELS": '{"smart": ["fake/lorem", "fake/echo"]}',
        "STREAMSPOOL_STORE_REASONING": "true",
    }
    lines = set(run("config", **given).stdout.splitlines())
    assert {f"{name}={value}" for name, value in given.items()} <= lines
    secrets = run("config", STREAMSPOOL_WEBHOOK_SECRET="whsec_" + "A" * 32).stdout.splitlines()
    assert "STREAMSPOOL_WEBHOOK_SECRET=****" in secrets
    unset = {f"{name}=(none)" for name in given if not name.endswith("REASONING")}
    assert {*unset, "STREAMSPOOL_WEBHOOK_URL=(none)", "STREAMSPOOL_FILES_URL=(none)"} <= set(secrets)


def test_secrets_in_files_are_no_more_shown_than_others(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("redis://me:hush-hush@db:6379/0\n")
    (tmp_path / "key").write_text("sk-" + "hush" * 10 + "last\n")
    files = {"REDIS_URL_FILE": str(tmp_path / "url"), "OPENAI_API_KEY_FILE": str(tmp_path / "key")}
    done = run("config", **files)
    assert "REDIS_URL=redis://db:6379/0" in done.stdout.splitlines()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        examined = run(
            "doctor",
            PORT=str(unused.getsockname()[1]),
            OPENAI_API_KEY_FILE=files["OPENAI_API_KEY_FILE"],
            OPENAI_BASE_URL="http://127.0.0.1:1/v1",
        )
    assert "provider openai: http://127.0.0.1:1/v1 (key …last)" in examined.stdout
    assert "hush" not in done.stdout + done.stderr + examined.stdout + examined.stderr
    missing = run("doctor", OPENAI_API_KEY_FILE=str(tmp_path / "missing"))
    assert "OPENAI_API_KEY_FILE names a file that cannot be read" in missing.stdout
    assert missing.returncode == 1


@pytest.mark.parametrize(("words", "name"), [(["config"], "REDIS_URL"), (["models"], "STREAMSPOOL_API_KEY")])
def test_a_secrets_file_that_cannot_be_read_is_one_line(words: list[str], name: str) -> None:
    done = run(*words, **{f"{name}_FILE": "/no/such/file"})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{name}_FILE names a file that cannot be read: No such file or directory\n"


# ---- conversations


def test_chat_puts_the_answer_on_stdout_and_all_else_on_stderr(stand_in: Callable[..., StandIn]) -> None:
    answer = [
        chunk("1-1", reasoning_content="hm"),
        KEEPALIVE,
        chunk("1-2", content="Grüß"),
        chunk("1-3", content=" Gott"),
    ]
    api = stand_in({"POST /v1/chat/completions": [[*answer, DONE]]})
    words = ("chat", "-", "-m", "fake/lorem", "-s", "be brief", "-o", "temperature=0.5", "-o", "user=me")
    done = run(*words, "--url", api.url, stdin="hello", STREAMSPOOL_API_KEY="sesame")
    assert (done.returncode, done.stdout) == (0, "Grüß Gott\n")
    assert "hm" in done.stderr
    for figure in (ID, "fake/lorem", "completed", "first token after", "3 tokens"):
        assert figure in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    path, headers, body = api.asked[0]
    assert path == "POST /v1/chat/completions"
    assert headers["authorization"] == "Bearer sesame"
    assert headers["x-stream-ids"] == "1"
    assert body == {
        "temperature": 0.5,
        "user": "me",
        "model": "fake/lorem",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}],
        "stream": True,
    }


def test_chat_as_json(stand_in: Callable[..., StandIn]) -> None:
    whole = {"object": "chat.completion", "choices": []}
    api = stand_in({"POST /v1/chat/completions": [[chunk("1-1", content="a"), DONE], (200, whole)]})
    lines = run("chat", "hi", "-m", "m", "--json", "--url", api.url).stdout.splitlines()
    assert [json.loads(line)["choices"][0]["delta"] for line in lines] == [{"content": "a"}]
    done = run("chat", "hi", "-m", "m", "--json", "--no-stream", STREAMSPOOL_URL=api.url)
    assert json.loads(done.stdout) == whole
    assert api.asked[-1][2]["stream"] is False


def test_a_lost_connection_is_resumed_where_it_was(stand_in: Callable[..., StandIn]) -> None:
    api = stand_in(
        {
            "POST /v1/chat/completions": [
                [chunk("1-1", content="a"), chunk("1-2", content="b"), b'id: 1-3\ndata: {"cho']
            ],
            f"GET /v1/streams/{ID}": [
                (503, {"error": {"message": "later"}}),
                [chunk("1-3", content="c")],
                [KEEPALIVE],
                (204, None),
                (200, STATE),
            ],
        }
    )
    done = run("chat", "hi", "-m", "m", "--url", api.url)
    assert (done.returncode, done.stdout) == (0, "abc\n")
    resumed = [
        headers["last-event-id"]
        for path, headers, _ in api.asked
        if path.startswith("GET") and "last-event-id" in headers
    ]
    assert resumed == ["1-2", "1-2", "1-3", "1-3"]


@pytest.mark.parametrize(
    ("tokens", "said_ms", "shown"),
    [(20, 1000, "20 tokens · 20 tokens/s"), (20, 10, "20 tokens"), (1, None, "1 token")],
)
def test_a_rate_is_that_of_the_provider_and_not_of_a_replay(
    monkeypatch: pytest.MonkeyPatch, tokens: int, said_ms: int | None, shown: str
) -> None:
    moments = iter([10.0, 11.0])  # asked, the first piece
    monkeypatch.setattr("shared.cli.screen.time", SimpleNamespace(monotonic=lambda: next(moments)))
    screen = Screen(no_stream=True, as_json=False)
    for _ in range(2):
        screen.show(Event("chunk", {"choices": [{"index": 0, "delta": {"content": "a"}}]}, "1-1"))
    timings = None if said_ms is None else {"first_chunk_ms": 500, "generation_ms": 500 + said_ms}
    state = {**STATE, "usage": {"completion_tokens": tokens}, "usage_source": "provider", "timings": timings}
    assert screen.figures(state).endswith(f"first token after 1.00 s · {shown}")


def test_a_new_attempt_voids_what_was_said(stand_in: Callable[..., StandIn]) -> None:
    attempt = b'id: 2-0\nevent: attempt\ndata: {"attempt":2}\n\n'
    frames = [chunk("1-1", content="wrong"), attempt, chunk("2-1", content="right"), DONE]
    api = stand_in({"POST /v1/chat/completions": [frames]})
    done = run("chat", "hi", "-m", "m", "--no-stream", "--url", api.url)
    assert (done.returncode, done.stdout) == (0, "right\n")
    assert "new attempt" in done.stderr


def test_an_answer_that_fails_keeps_its_text_and_exits_1(stand_in: Callable[..., StandIn]) -> None:
    error = b'data: {"error":{"message":"the worker was lost","code":"worker_lost"}}\n\n'
    api = stand_in({"POST /v1/chat/completions": [[chunk("1-1", content="half"), error, DONE]]})
    done = run("chat", "hi", "-m", "m", "--url", api.url)
    assert (done.returncode, done.stdout) == (1, "half\n")
    assert "the worker was lost" in done.stderr
    assert "worker_lost" in done.stderr


def left_after_six(*words: str) -> tuple[int, str]:
    """The exit code, and what is said on stderr, of a command that is left with Ctrl-C once it has shown "so far"."""
    process = subprocess.Popen(**command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.read(6) == "so far"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=WAIT_S)
    finally:
        process.kill()
        process.wait(WAIT_S)
    return process.returncode, said


def test_ctrl_c_detaches_and_says_how_to_go_on(stand_in: Callable[..., StandIn]) -> None:
    api = stand_in({"POST /v1/chat/completions": [[chunk("1-1", content="so"), chunk("1-2", content=" far"), ...]]})
    code, said = left_after_six("chat", "hi", "-m", "m", "--url", api.url)
    assert code == 130
    assert f"streamspool watch {ID} --from 1-2" in said
    assert "Traceback" not in said
    assert not any("cancel" in path for path, _, _ in api.asked)


def test_an_admin_who_leaves_is_told_the_way_back_to_what_is_anothers(stand_in: Callable[..., StandIn]) -> None:
    api = stand_in({f"GET /v1/streams/{ID}": [[chunk("1-1", content="so far"), ...]]})
    _, said = left_after_six("watch", ID, "--tenant", "team-a", "--url", api.url)
    assert f"streamspool watch {ID} --from 1-1 --tenant team-a" in said


def test_watch_starts_after_a_position(stand_in: Callable[..., StandIn]) -> None:
    api = stand_in({f"GET /v1/streams/{ID}": [[chunk("1-3", content="rest"), DONE], (200, STATE)]})
    done = run("watch", ID, "--from", "1-2", "--url", api.url)
    assert (done.returncode, done.stdout) == (0, "rest\n")
    assert api.asked[0][1]["last-event-id"] == "1-2"


def test_watch_waits_for_a_server_that_asks_for_patience(stand_in: Callable[..., StandIn]) -> None:
    later = (503, {"error": {"message": "later"}})
    api = stand_in({f"GET /v1/streams/{ID}": [later, later, [chunk("1-1", content="now"), DONE], (200, STATE)]})
    assert run("watch", ID, "--url", api.url).stdout == "now\n"


def test_ls_cancel_and_models(stand_in: Callable[..., StandIn]) -> None:
    page = {"object": "list", "data": [STATE], "has_more": False}
    api = stand_in(
        {
            "GET /v1/streams": [(200, page)],
            f"POST /v1/streams/{ID}/cancel": [(200, {**STATE, "status": "cancelled"})],
            "GET /v1/models": [(200, {"object": "list", "data": [{"id": "fake/echo", "owned_by": "fake"}]})],
        }
    )
    listed = run("ls", "--limit", "5", "--status", "completed", "--url", api.url)
    assert ID in listed.stdout
    assert "completed" in listed.stdout
    assert api.asked[-1][0] == "GET /v1/streams?limit=5&status=completed"
    assert json.loads(run("ls", "--json", "--url", api.url).stdout) == page
    assert run("cancel", ID, "--url", api.url).stdout == f"{ID} cancelled\n"
    assert run("models", "--url", api.url).stdout == "fake/echo\n"
    shown = run("show", ID, "--url", api.url).stdout
    assert "completed" in shown
    assert "2 prompt, 3 completion, 5 total (provider)" in shown


@pytest.mark.parametrize("words", [["ls"], ["models"], ["watch", ID], ["cancel", ID], ["chat", "hi", "-m", "m"]])
def test_no_server_is_one_clear_line(words: list[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = str(unused.getsockname()[1])
        done = run(*words, PORT=port)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"Error: Cannot reach Streamspool at http://127.0.0.1:{port} ")
    assert "streamspool up" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_refusals_are_shown_as_the_server_words_them(stand_in: Callable[..., StandIn]) -> None:
    api = stand_in({"GET /v1/models": [(401, {"error": {"message": "no such key", "code": "invalid_api_key"}})]})
    for words, message, hint in (
        (["watch", "other"], "no such stream (HTTP 404, not_found)", ""),
        (["models"], "no such key (HTTP 401, invalid_api_key)", "STREAMSPOOL_API_KEY"),
    ):
        done = run(*words, "--url", api.url)
        first, _, rest = done.stderr.partition("\n")
        assert (done.returncode, first) == (1, f"Error: {message}")
        assert hint in rest
        assert bool(hint) == bool(rest)  # where the key comes from
    assert "is not Streamspool" in run("models", "--url", stand_in({"GET /v1/models": [(200, [])]}).url).stderr
    assert "--url" in run("models", "--url", "nonsense").stderr


def test_an_admin_looks_at_what_is_anothers(stand_in: Callable[..., StandIn]) -> None:
    page = {"data": [{**STATE, "tenant": "team-a"}], "has_more": False}
    api = stand_in({"GET /v1/streams": [(200, page)], f"POST /v1/streams/{ID}/cancel": [(200, STATE)]})
    listed = run("ls", "--tenant", "*", "--status", "failed", "--url", api.url).stdout.splitlines()
    assert [line.split()[:2] for line in listed] == [["TENANT", "ID"], ["team-a", ID]]
    for word in ("show", "cancel"):
        assert run(word, ID, "--tenant", "team-a", "--url", api.url).returncode == 0
    assert [asked for asked, _, _ in api.asked] == [
        "GET /v1/streams?limit=20&status=failed&tenant=%2A",
        f"GET /v1/streams/{ID}?tenant=team-a",
        f"POST /v1/streams/{ID}/cancel?tenant=team-a",
    ]


def test_of_an_answer_that_is_gone_what_is_still_known_is_shown(stand_in: Callable[..., StandIn]) -> None:
    gone = {"message": "The text of this answer is not kept any more.", "code": "stream_expired", "stream": STATE}
    api = stand_in({f"GET /v1/streams/{ID}": [(404, {"error": gone})]})
    shown = run("show", ID, "--url", api.url)
    assert (shown.returncode, shown.stdout.splitlines()[0].split()) == (0, ["id", ID])
    assert "no such stream" in run("show", "other", "--url", api.url).stderr
    strange = stand_in({f"GET /v1/streams/{ID}": [(404, {"status": 404, "error": "Not Found"})] * 2})
    assert run("show", ID, "--url", strange.url).stderr == "Error: The server answered with HTTP status 404.\n"


def test_an_api_whose_port_is_taken_says_so_and_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("api", "--port", str(port), REDIS_URL="redis://127.0.0.1:1")
    assert done.returncode == 1, done.stderr
    assert f"Cannot listen on port {port} of 127.0.0.1" in done.stderr.splitlines()[-1]


# ---- doctor


def test_doctor_before_the_first_start_and_with_a_running_api(stand_in: Callable[..., StandIn]) -> None:
    provider = stand_in({"GET /v1/models": [(200, {"data": [{"id": "gpt"}]})]})
    port = str(free_port())
    done = run("doctor", PORT=port, OPENAI_API_KEY="sk-" + "x" * 40 + "last", OPENAI_BASE_URL=f"{provider.url}/v1")
    assert done.returncode == 0, done.stdout
    assert f"ok   provider openai: {provider.url}/v1 (key …last) answers in" in done.stdout
    assert "xxx" not in done.stdout
    ((asked, headers, _),) = provider.asked
    assert asked == "GET /v1/models"
    assert headers["authorization"].endswith("last")


PROXIED: dict[str, list[Any]] = {
    "GET /readyz": [(200, {"status": "ok", "checks": {"redis": "ok"}})],
    "GET /v1/models": [(200, {"data": [{"id": "fake/echo", "owned_by": "fake"}]})],
}


@pytest.mark.parametrize(("kept_back", "ok"), [(False, True), (True, False)])
def test_doctor_sees_whether_what_stands_in_front_keeps_streams_back(
    stand_in: Callable[..., StandIn], kept_back: bool, ok: bool
) -> None:
    words = [chunk(f"1-{number}", content="so ") for number in range(1, 4)]
    # The doctor compares times: that of the pause has to be long beside what a busy machine takes until the first word.
    stream = [0.3, b"".join(words), DONE] if kept_back else [words[0], 4.0, *words[1:], DONE]
    refusal = (413 if kept_back else 400, {"error": {"message": "no"}})
    api = stand_in({**PROXIED, "POST /v1/chat/completions": [stream, refusal]})
    done = run("doctor", "--json", "--url", api.url)
    found = [finding for finding in json.loads(done.stdout) if finding["what"] == "way to the API"]
    assert [finding["ok"] for finding in found if "stream" in finding["found"]] == [ok]
    assert [finding["ok"] for finding in found if "1.2 MB" in finding["found"]] == [ok]
    assert done.returncode == (0 if ok else 1)


def test_doctor_names_an_address_that_only_redirects(stand_in: Callable[..., StandIn]) -> None:
    api = stand_in({**PROXIED, "GET /readyz": [PROXIED["GET /readyz"][0], (301, None)]})
    assert "FAIL way to the API: redirects to elsewhere" in run("doctor", "--url", api.url).stdout


FORGOTTEN = """
top = 1
[providers.lab]
base_url = "http://127.0.0.1:1/v1"
api_key_env = "LAB_KEY"
[providers.home]
base_url = "http://127.0.0.1:1/v1"
[models]
smart = ["lab/a", "home/b", "hoome/c"]
"""
SAID = (
    "streamspool.toml: 'top' is no setting and does nothing",
    "[providers.lab] takes its key from LAB_KEY, which is not set: the provider is off",
    "[models] smart: provider lab is off; home/b will answer",
    "[models] smart: there is no provider hoome; did you mean home?; home/b will answer",
)


def test_config_and_doctor_say_what_does_nothing(tmp_path: Path) -> None:
    (tmp_path / "streamspool.toml").write_text(FORGOTTEN)
    done = run("config")
    assert (done.returncode, done.stderr.splitlines()) == (0, list(SAID))
    assert json.loads(run("config", "--json").stdout)["PORT"] == "8000"
    examined = run("doctor").stdout
    for line in SAID:
        assert line in examined
    assert "FAIL provider home: http://127.0.0.1:1/v1 no connection: connection refused" in examined


def test_where_nothing_can_work_config_says_so_with_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "streamspool.toml").write_text('[models]\nsmart = "opnai/gpt-5"\n')
    done = run("config")
    assert done.returncode == 2
    assert "did you mean openai?" in done.stderr
    assert "No provider is on" in done.stderr


def test_doctor_fails_with_advice(stand_in: Callable[..., StandIn]) -> None:
    checks = {"status": "unavailable", "checks": {"redis": "ok", "workers": 0}}
    api = stand_in({"GET /readyz": [(503, checks)], "GET /v1/models": [(200, {"data": []})]})
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        done = run("doctor", "--url", api.url, REDIS_URL=f"redis://:hush@127.0.0.1:{unused.getsockname()[1]}/0")
    assert done.returncode == 1
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 2, done.stdout
    assert "correct REDIS_URL" in failed[0]
    assert "streamspool worker" in failed[1]
    assert "hush" not in done.stdout
