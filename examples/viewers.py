"""Many viewers of one answer: each joins when it likes, all see the same, and the provider is asked once.

    python examples/viewers.py [VIEWERS]

The first one asks. The others know its id only and join while it runs; the last comes when all is over.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

import httpx

BASE = os.environ.get("STREAMSPOOL_URL", "http://127.0.0.1:8000") + "/v1"
HEADERS = {"authorization": f"Bearer {os.environ.get('STREAMSPOOL_API_KEY', 'any')}"}


async def events(response: httpx.Response) -> list[str]:
    """The data of each event, to the end. Bytes are split here: `aiter_lines` also breaks at U+2028, which is text."""
    unread, found = b"", []
    async for received in response.aiter_raw():
        *lines, unread = (unread + received).split(b"\n")
        found += [line.removeprefix(b"data: ").decode() for line in lines if line.startswith(b"data: ")]
    return found


def text(data: list[str]) -> str:
    """The answer that these events add up to."""
    if not data or data[-1] != "[DONE]":
        raise ConnectionError("cut: there was no [DONE]")
    said = ""
    for chunk in map(json.loads, data[:-1]):
        if "error" in chunk:
            raise RuntimeError(chunk["error"]["message"])
        said += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
    return said


async def watch(client: httpx.AsyncClient, generation_id: str, late_s: float) -> str:
    await asyncio.sleep(late_s)
    async with client.stream("GET", f"{BASE}/streams/{generation_id}") as response:
        return text(await events(response.raise_for_status()))


async def main(viewers: int) -> None:
    request = {
        "model": "fake/lorem?tokens=60&rate=60",
        "stream": True,
        "messages": [{"role": "user", "content": "Go"}],
    }
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(headers=HEADERS, timeout=60, limits=limits, trust_env=False) as client:
        async with client.stream("POST", f"{BASE}/chat/completions", json=request) as response:
            generation_id = response.raise_for_status().headers["x-stream-id"]
            others = [asyncio.create_task(watch(client, generation_id, n / viewers)) for n in range(viewers - 2)]
            first = text(await events(response))
        texts = [first, *await asyncio.gather(*others), await watch(client, generation_id, 0)]
        state = (await client.get(f"{BASE}/streams/{generation_id}", headers={"accept": "application/json"})).json()
    print(f"{len(texts)} viewers, {len(set(texts))} text of {len(first.split())} words, {state['attempts']} attempt")


if __name__ == "__main__":
    asyncio.run(main(max(2, int(sys.argv[1])) if len(sys.argv) > 1 else 20))
