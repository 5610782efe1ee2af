"""OpenAI's Codex as a program, unchanged, from its npm package. That has 420 MB, so it is set up on demand (`make codex`).

Hidden here: its settings, and what it writes down of a turn.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).parents[1] / "clients/codex/node_modules/.bin/codex"

_SETTINGS = """
model = "{model}"
model_provider = "spool"
approval_policy = "never"
sandbox_mode = "danger-full-access"
web_search = "disabled"
[model_providers.spool]
name = "spool"
base_url = "{url}/v1"
wire_api = "responses"
supports_websockets = {sockets}
"""


class Turn:
    """One turn of Codex, which begins at once."""

    def __init__(self, directory: Path, url: str, model: str, *, sockets: bool) -> None:
        home = directory / "codex"
        home.mkdir()
        settings = _SETTINGS.format(model=model, url=url, sockets=str(sockets).lower())
        (home / "config.toml").write_text(settings, encoding="utf-8")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
        environment |= {"CODEX_HOME": str(home), "RUST_LOG": "error"}
        command = [str(PROGRAM), "exec", "--skip-git-repo-check", "--json", "say hello"]
        self._process = subprocess.Popen(
            command,
            env=environment,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def end(self) -> list[dict[str, Any]]:
        """What it did: the items that it finished, `agent_message` and `command_execution` among them."""
        try:
            out, errors = self._process.communicate(timeout=240)
        finally:
            self._process.kill()
        told = [json.loads(line) for line in out.splitlines()]
        assert self._process.returncode == 0, (told[-3:], errors[-2000:])
        assert told[-1]["type"] == "turn.completed", told[-1]
        return [one["item"] for one in told if one["type"] == "item.completed"]
