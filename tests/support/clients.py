"""The clients that are tried unchanged: which program plays each, in which environment, and the models they ask for."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.harness.upstream import DONE, Answer, Pause, Script, ScriptedUpstream, chunk, ending, words

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / "tests/clients"
OLD_OPENAI, OTHERS = ROOT / ".venv-openai-1.40", ROOT / ".venv-python-clients"
WHOLE = "w0 w1 w2 w3 w4 "

EXERCISES = {
    "whole": "whole",
    "stream": "stream",
    "stream_with_usage": "usage",
    "tool_calls": "tools",
    "reasoning": "reasoning",
    "refusal": "400, 429",
    "error_in_the_middle": "error frame",
    "models": "models",
    "hang_up": "hang-up",
}
"""The checks that every client has to pass, as far as it has the feature, and what the documentation calls them."""


class Client(NamedTuple):
    """A client and the program that uses it. `package` is what its version is pinned under in `lock`."""

    name: str
    program: str
    package: str = ""
    lock: str = ""
    python: Path = Path(sys.executable)

    @property
    def version(self) -> str:
        """As pinned, or as the program says; empty for what is installed with the system."""
        if not self.lock:
            source = (PROGRAMS / self.program).read_text("utf-8")
            return next(iter(re.findall(r'^VERSION = "(.+)"', source, re.M)), "")
        text = (ROOT / self.lock).read_text("utf-8")
        if self.lock.endswith(".json"):
            return str(json.loads(text)["packages"][f"node_modules/{self.package}"]["version"])
        (found,) = re.findall(rf"^{self.package}==(\S+)", text, re.M)
        return str(found)

    @property
    def checks(self) -> list[str]:
        """The names of the program's checks, read from its source."""
        form = r"^(?:async )?def check_(\w+)" if self.program.endswith(".py") else r"^  async (\w+)\("
        return re.findall(form, (PROGRAMS / self.program).read_text("utf-8"), re.M)

    def command(self, *arguments: str) -> list[str] | str:
        """What to run, or the reason why it cannot be run here."""
        if self.program.endswith(".mjs"):
            node = shutil.which("node")
            if not node or not (PROGRAMS / "node_modules" / self.package).exists():
                return f"no node, or no {self.package} in tests/clients: run `make clients`"
            return [node, str(PROGRAMS / self.program), *arguments]
        if not self.python.exists():
            return f"no {self.python}: run `make clients`"
        if self.name == "curl" and not shutil.which("curl"):
            return "no curl"
        return [str(self.python), str(PROGRAMS / self.program), *arguments]


def _others(name: str, program: str, package: str) -> Client:
    return Client(name, program, package, "tests/clients/python-clients.lock", OTHERS / "bin/python")


CLIENTS = (
    Client("openai, Python", "check_openai.py", "openai", "tests/requirements-dev.lock"),
    Client(
        "openai, Python, the oldest",
        "check_openai.py",
        "openai",
        "tests/clients/openai-1.40.lock",
        OLD_OPENAI / "bin/python",
    ),
    Client("openai, JavaScript", "check_openai.mjs", "openai", "tests/clients/package-lock.json"),
    Client("Vercel AI SDK, `openai-compatible`", "check_ai.mjs", "ai", "tests/clients/package-lock.json"),
    _others("LangChain, `ChatOpenAI`", "check_langchain.py", "langchain-openai"),
    _others("Pydantic AI", "check_pydantic_ai.py", "pydantic-ai-slim"),
    _others("LiteLLM, as a library", "check_litellm.py", "litellm"),
    _others("`llm`", "check_llm.py", "llm"),
    Client("curl", "check_curl.py"),
    Client("Open WebUI (its reading rules, written down)", "check_open_webui.py"),
)


RESPONSES_CLIENTS = (
    Client("openai, Python", "check_responses.py", "openai", "tests/requirements-dev.lock"),
    Client(
        "openai, Python, the oldest with it",
        "check_responses_oldest.py",
        "openai",
        "tests/clients/openai-1.66.lock",
        ROOT / ".venv-openai-1.66/bin/python",
    ),
    Client("openai, JavaScript", "check_responses.mjs", "openai", "tests/clients/package-lock.json"),
    Client(
        "openai, JavaScript, the oldest with it",
        "check_responses_oldest.mjs",
        "openai-oldest",
        "tests/clients/package-lock.json",
    ),
    Client("openai, Python, WebSocket", "check_responses_socket.py", "openai", "tests/requirements-dev.lock"),
    Client("openai, JavaScript, WebSocket", "check_responses_socket.mjs", "openai", "tests/clients/package-lock.json"),
    Client("Vercel AI SDK, `openai`", "check_responses_ai.mjs", "ai", "tests/clients/package-lock.json"),
    _others("openai-agents", "check_responses_agents.py", "openai-agents"),
    _others("LangChain, `ChatOpenAI`", "check_responses_langchain.py", "langchain-openai"),
    _others("LiteLLM, `openai/responses/…`", "check_responses_litellm.py", "litellm"),
    _others("Pydantic AI, `OpenAIResponsesModel`", "check_responses_pydantic_ai.py", "pydantic-ai-slim"),
)
"""Those that are tried over the Responses API, too."""


class Models(NamedTuple):
    """What `set_up` leaves to look at: the script that says 429, the one that waits, and what makes that go on."""

    limit: Script
    waits: Script
    go: Callable[[], None]


def _calls(name: str, arguments: str) -> list[bytes]:
    function = {"name": name, "arguments": arguments}
    call = {"index": 0, "id": "c9", "type": "function", "function": function}
    return [chunk({"tool_calls": [call]}), chunk({}, "tool_calls"), DONE]


def _in_turns(*answers: list[bytes]) -> Callable[[int], Answer]:
    """One after the other, and again from the first."""
    return lambda call: Answer(answers[(call - 1) % len(answers)])


def set_up(upstream: ScriptedUpstream) -> Models:
    """Registers the models `scripted/client-…` that the programs ask for."""
    said = words(5)
    upstream.script("client-slow", [0.22, *said[:2], 0.12, *said[2:4], 0.12, *said[4:], *ending()])
    call = [
        chunk({"tool_calls": [{"index": i, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}]})
        for i, (id, name) in enumerate((("c1", "f"), ("c2", "g")))
    ]
    arguments = [
        chunk({"tool_calls": [{"index": i, "function": {"arguments": piece}}]})
        for i, piece in ((0, '{"x'), (1, '{"x": 2'), (0, '": 1}'), (1, "}"))
    ]
    opening = chunk({"role": "assistant", "content": None})
    upstream.script("client-tools", [opening, *call, *arguments, chunk({}, "tool_calls"), DONE])
    thoughts = [chunk({"reasoning_content": piece}) for piece in ("Let me ", "see. ")]
    answer = [chunk({"content": piece}) for piece in ("It is ", "4.")]
    upstream.script("client-thinks", [opening, *thoughts, *answer, *ending()])
    calling = [[opening, *_calls("f", '{"x": 1}')], [opening, *_calls("transfer_to_b", "{}")]]
    upstream.plan("client-loops", by=_in_turns(calling[0], [opening, *answer, *ending()]))
    upstream.script("client-hands-over", calling[1])
    broken = b'data: {"error": {"message": "the machine is on fire", "code": "fire"}}\n\n'
    upstream.script("client-broken", [*words(2), broken])
    headers = {"content-type": "application/json"}
    body = b'{"error": {"message": "There is no such thing.", "type": "x", "code": "no_such_thing", "param": "thing"}}'
    upstream.script("client-refuses", [body], status=400, headers=headers)
    body = b'{"error": {"message": "slow down", "type": "insufficient_quota", "code": "insufficient_quota"}}'
    limit = upstream.script("client-limit", [body], status=429, headers={**headers, "retry-after": "1"})
    pause = Pause()
    waits = upstream.script("client-waits", [*said[:3], pause, *said[3:], *ending()])
    upstream.script("client-silent", [*said[:1], pause, *said[1:], *ending()])
    return Models(limit, waits, pause.go)
