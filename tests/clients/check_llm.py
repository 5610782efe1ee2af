"""What someone types with Simon Willison's `llm`: by `llm openai endpoint`, and with models of a configuration file.

It shows reasoning of the Responses API only.
"""

import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import harness
from harness import TEXT

ASKED = "one two three"
FUNCTIONS = "def f(x: int): return f'f got {x}'\ndef g(x: int): return f'g got {x}'"
HOME = tempfile.TemporaryDirectory()
ENVIRONMENT = {**os.environ, "LLM_USER_PATH": HOME.name}


def llm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs it; `stdout`, `stderr` and `returncode` say what came of it."""
    line = [str(Path(sys.executable).with_name("llm")), *arguments]
    return subprocess.run(line, capture_output=True, text=True, env=ENVIRONMENT, timeout=100, stdin=subprocess.DEVNULL)


def ask(base_url: str, key: str, model: str, *options: str) -> subprocess.CompletedProcess[str]:
    return llm("openai", "endpoint", base_url, ASKED, "-m", model, "--key", key, *options)


def configure(base_url: str, key: str) -> None:
    """The other way: models with names of their own, and a key that is kept."""
    models = [
        {"model_id": name, "model_name": f"scripted/client-{name}", "api_base": base_url, "api_key_name": "streamspool"}
        for name in ("slow", "waits")
    ]
    Path(HOME.name, "extra-openai-models.yaml").write_text(json.dumps(models))
    Path(HOME.name, "keys.json").write_text(json.dumps({"streamspool": key}))


def check_whole(base_url: str, key: str) -> None:
    done = ask(base_url, key, "fake/echo", "--no-stream")
    assert (done.returncode, done.stdout) == (0, ASKED + "\n"), done


def check_stream(base_url: str, key: str) -> None:
    assert ask(base_url, key, "scripted/client-slow").stdout == TEXT + "\n"


def check_stream_with_usage(base_url: str, key: str) -> None:
    configure(base_url, key)
    done = llm(ASKED, "-m", "slow", "--usage")
    assert done.stdout == TEXT + "\n", done
    assert "Token usage: 7 input, 5 output" in done.stderr, done


def check_tool_calls(base_url: str, key: str) -> None:
    """It calls the functions, sends what they say, and gets the same calls again, until it has had enough."""
    options = ("--functions", FUNCTIONS, "--td", "--cl", "2")
    for done in (ask(base_url, key, "scripted/client-tools", *options, *more) for more in ((), ("--no-stream",))):
        assert "f got 1" in done.stderr, done
        assert "g got 2" in done.stderr, done


def check_refusal(base_url: str, key: str) -> None:
    done = ask(base_url, key, "scripted/client-refuses", "--no-stream")
    assert done.returncode == 1
    assert "400" in done.stderr, done
    assert "There is no such thing." in done.stderr, done


def check_rate_limit(base_url: str, key: str) -> None:
    done = ask(base_url, key, "scripted/client-limit", "--no-stream")
    assert done.returncode == 1
    assert "429" in done.stderr, done
    assert "slow down" in done.stderr, done


def check_error_in_the_middle(base_url: str, key: str) -> None:
    done = ask(base_url, key, "scripted/client-broken")
    assert done.returncode == 1
    assert done.stdout.startswith("w0 w1 "), done
    assert "the machine is on fire" in done.stderr, done


def check_models(base_url: str, key: str) -> None:
    assert "fake/echo" in llm("openai", "endpoint", base_url, "--models", "--key", key).stdout.split()


def check_hang_up(base_url: str, key: str) -> None:
    configure(base_url, key)
    line = [str(Path(sys.executable).with_name("llm")), ASKED, "-m", "waits"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as run:
        assert run.stdout is not None
        shown = ""
        while not shown.endswith("w1 "):
            shown += run.stdout.read(1)
        run.terminate()


if __name__ == "__main__":
    harness.run(globals(), version("llm"))
