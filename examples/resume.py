"""Lose the connection in the middle of an answer and go on where it broke, with the unchanged `openai` package.

    python examples/resume.py

Every chunk carries the id of its generation, and the number of chunks that were read is a cursor. So a client that knows
nothing of Streamspool's own routes can come back, from this process or another one.
"""

from __future__ import annotations

import os

from openai import OpenAI, Stream
from openai.types.chat import ChatCompletionChunk

client = OpenAI(
    base_url=os.environ.get("STREAMSPOOL_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("STREAMSPOOL_API_KEY", "any"),
)


def begin(model: str, question: str, leave_after: int) -> tuple[str, str, int]:
    """Asks, and leaves after so many chunks. Returns the generation's id, the text so far, and how many were read."""
    stream = client.chat.completions.create(model=model, messages=[{"role": "user", "content": question}], stream=True)
    text, seen, generation_id = "", 0, ""
    for chunk in stream:
        generation_id, seen = chunk.id, seen + 1
        text += chunk.choices[0].delta.content or ""
        if seen == leave_after:
            break
    stream.close()
    return generation_id, text, seen


def go_on(generation_id: str, seen: int) -> str:
    """The rest of the answer: what comes after the first `seen` chunks."""
    stream = client.get(
        f"/chat/completions/{generation_id}",
        options={"params": {"stream": "true", "starting_after": seen}},
        cast_to=ChatCompletionChunk,
        stream=True,
        stream_cls=Stream[ChatCompletionChunk],
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


if __name__ == "__main__":
    generation_id, text, seen = begin("fake/lorem?tokens=40&rate=40", "Go", leave_after=10)
    print(f"left after {seen} chunks: {text.strip()} …")
    text += go_on(generation_id, seen)
    whole = client.chat.completions.retrieve(generation_id)
    print(f"came back: {len(text.split())} words, as stored: {text == whole.choices[0].message.content}")
