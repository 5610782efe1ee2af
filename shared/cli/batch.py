"""`streamspool batch`: a file of prompts in, a file of answers out.

Hidden here: what a line of the input may be, and how a command that is given again finds the batch it began: a small
file beside the output holds its id until the output is there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, NamedTuple

from shared.cli.client import Client
from shared.errors import StreamspoolError

WINDOW = "24h"
_ENDPOINT = "/v1/chat/completions"


class Outcome(NamedTuple):
    """The batch object at its end, and where its results were written; None where there are none."""

    batch: dict[str, Any]
    output: Path | None
    errors: Path | None


def errors_beside(output: Path) -> Path:
    return output.with_name(f"{output.stem}.errors{output.suffix}")


def state_beside(output: Path) -> Path:
    """Where the batch's id is kept until the output is there."""
    return output.with_name(f"{output.name}.batch")


def prepare(lines: Iterator[bytes], model: str | None, target: BinaryIO) -> str:
    """Writes the input as batches take it, and returns its digest.

    A line is a batch's line, or a request (an object with `messages`), or a prompt (a string): these get their number as
    `custom_id`. `model` is for those that name none. Raises StreamspoolError.
    """
    digest = hashlib.sha256()
    for number, raw in enumerate(lines, 1):
        try:
            value = json.loads(raw)
        except ValueError:
            raise StreamspoolError(f"Line {number} of the input is not JSON.") from None
        line = json.dumps(_line(value, number, model)).encode() + b"\n"
        digest.update(line)
        target.write(line)
    return digest.hexdigest()


def _line(value: Any, number: int, model: str | None) -> dict[str, Any]:
    if isinstance(value, str):
        value = {"messages": [{"role": "user", "content": value}]}
    if isinstance(value, dict) and "body" not in value and "messages" in value:
        value = {"custom_id": str(number), "method": "POST", "url": _ENDPOINT, "body": value}
    if not isinstance(value, dict) or not isinstance(value.get("body"), dict):
        raise StreamspoolError(
            f"Line {number} of the input is neither a batch's line, nor a request with `messages`, nor a prompt."
        )
    body = value["body"]
    if not body.get("model"):
        if model is None:
            raise StreamspoolError(f"Line {number} of the input names no model. Give one with -m.")
        body = {"model": model, **{name: field for name, field in body.items() if name != "model"}}
    return {**value, "body": body}


async def run(
    client: Client, source: Path, model: str | None, output: Path, on_change: Callable[[dict[str, Any]], None]
) -> Outcome:
    """Starts the batch, or goes on with the one that was begun, and brings its results here. Raises StreamspoolError."""
    state = state_beside(output)
    with _writing(output, "Nothing was asked. Name another file with -o."), _part(output).open("wb"):
        pass  # now, and not when the answers are paid for
    _part(output).unlink()
    with TemporaryFile() as prepared, source.open("rb") as lines:
        digest = prepare(lines, model, prepared)
        known = json.loads(state.read_text("utf-8")) if state.exists() else None
        if known and known["input"] != digest:
            raise StreamspoolError(f"{state} is of a batch with another input. Remove it to forget that batch.")
        if known is None:
            file = await client.upload(prepared, source.name)
            batch = await client.create_batch(file["id"], WINDOW)
            known = {"batch": batch["id"], "input": digest}
            with _writing(
                state, f"The batch {batch['id']} runs: GET /v1/batches/{batch['id']} has its files in the end."
            ):
                state.write_text(json.dumps(known), "utf-8")
    batch = await client.watch_batch(known["batch"], on_change)
    written = [
        await _fetch(client, batch[field], path)
        for field, path in (("output_file_id", output), ("error_file_id", errors_beside(output)))
    ]
    state.unlink()
    return Outcome(batch, *written)


@contextmanager
def _writing(path: Path, advice: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StreamspoolError(f"Cannot write {path}: {error.strerror or error}. {advice}") from None


async def _fetch(client: Client, file_id: str | None, path: Path) -> Path | None:
    """A file appears whole: until then it has another name."""
    if file_id is None:
        return None
    part = _part(path)
    with _writing(path, "The batch has ended: give the same command again to fetch it."):
        with part.open("wb") as target:
            await client.download(file_id, target)
        part.replace(path)
    return path


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")
