"""One line of the doctor's report, and how providers' lines come from the worker, which alone knows the keys."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any, NamedTuple

from shared.cli.supervisor import command
from shared.lib.process import WRONG_SETTINGS

_WAIT_S = 60.0


class Finding(NamedTuple):
    """`ok` is False for what stops Streamspool from working, None for what costs something, and True for all else."""

    ok: bool | None
    what: str
    found: str


async def ask_worker(*, ask: bool) -> dict[str, Any]:
    """What `python -m worker.check` says (worker/check.py has its shape): which providers are on; with `ask`, how each of
    them answers."""
    argv = [*command("worker.check"), *(("--ask",) if ask else ())]
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ,
    )
    try:
        async with asyncio.timeout(_WAIT_S):
            said, wrong = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return _broken(f"`{' '.join(argv[1:])}` did not end within {_WAIT_S:g} s")
    if process.returncode:
        reason = wrong.decode("utf-8", "replace").strip()
        return _broken(
            reason if process.returncode == WRONG_SETTINGS else reason.splitlines()[-1] if reason else "it broke"
        )
    report: dict[str, Any] = json.loads(said)
    return report


def _broken(reason: str) -> dict[str, Any]:
    return {"notices": [], "error": reason, "providers": []}
