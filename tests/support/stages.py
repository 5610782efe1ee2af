"""Ends the worker that it is installed in at a stage of a batch's life, once for each plan or every time: the signal comes
from within, so that it comes just there.

A plan is a file with the stage, the number of the signal, and `once` or `always`; whoever carries the first kind out takes it
away before.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from worker.batches import end as batch_end
from worker.batches import run as batch
from worker.batches.input import Input
from worker.batches.results import Results

STAGES = (
    "validating",
    "validated",
    "handed out",
    "taken in",
    "stored",
    "written down",
    "last handed out",
    "last window",
    "last part",
    "finalizing",
    "files made",
    "ended",
)

Step = Callable[..., Awaitable[Any]]


def install(plan: str) -> None:
    """In the process that this is called in."""
    path = Path(plan)

    def reached(stage: str) -> None:
        try:
            wanted, number, often = path.read_text().split(":")
            if wanted == stage:
                if often == "once":
                    path.rename(path.with_suffix(".done"))
                os.kill(os.getpid(), int(number))
        except FileNotFoundError:
            pass

    def around(owner: Any, name: str, before: Callable[[Any], str], after: Callable[[Any], str]) -> None:
        step: Step = getattr(owner, name)

        async def stepped(*arguments: Any, **keywords: Any) -> Any:
            if stage := before(arguments[0]):
                reached(stage)
            result = await step(*arguments, **keywords)
            if stage := after(arguments[0]):
                reached(stage)
            return result

        setattr(owner, name, stepped)

    def nothing(_: Any) -> str:
        return ""

    around(Input, "check", lambda _: "validating", nothing)
    around(batch.Run, "_work", lambda _: "validated", nothing)
    around(batch.Run, "_hand_out", nothing, lambda run: "last handed out" if run.source.over else "handed out")
    around(batch.Run, "_take_in", nothing, lambda run: "last window" if run.source.over and run.queue else "taken in")
    around(batch.Run, "flush", lambda run: "last part" if run.source.over and not run.queue else "", nothing)
    around(Results, "store", nothing, lambda _: "stored")
    around(batch.Run, "_forget", lambda run: "written down" if run.results.stored() else "", nothing)
    around(batch_end, "make_file", lambda _: "finalizing", lambda _: "files made")
    around(batch_end.Ending, "_remove_parts_after", lambda _: "ended", nothing)
