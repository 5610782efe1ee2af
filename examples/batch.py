"""Run many requests as one batch, and read the answers, with the unchanged `openai` package.

    python examples/batch.py

Each line is run once, whatever is killed meanwhile. `streamspool batch` does the same on the command line.
"""

from __future__ import annotations

import json
import os
import time

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("STREAMSPOOL_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("STREAMSPOOL_API_KEY", "any"),
)
ENDS = ("completed", "failed", "cancelled", "expired")


def lines(model: str, questions: dict[str, str]) -> bytes:
    """The input: one JSON object a line; `custom_id` tells the answers apart."""
    requests = (
        {
            "custom_id": name,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": model, "messages": [{"role": "user", "content": question}]},
        }
        for name, question in questions.items()
    )
    return b"".join(json.dumps(request).encode() + b"\n" for request in requests)


def run(content: bytes) -> dict[str, str]:
    """The answers by `custom_id`. They come in any order."""
    uploaded = client.files.create(file=("questions.jsonl", content), purpose="batch")
    batch = client.batches.create(input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h")
    while batch.status not in ENDS:
        time.sleep(0.2)
        batch = client.batches.retrieve(batch.id)
    if batch.output_file_id is None:
        raise RuntimeError(f"the batch is {batch.status}: {batch.errors}")
    output = client.files.content(batch.output_file_id).text
    answers = [json.loads(line) for line in output.splitlines()]
    return {answer["custom_id"]: answer["response"]["body"]["choices"][0]["message"]["content"] for answer in answers}


if __name__ == "__main__":
    answers = run(lines("fake/echo", {f"greeting-{n}": f"Hello number {n}" for n in range(1, 6)}))
    for name, answer in sorted(answers.items()):
        print(f"{name}: {answer}")
