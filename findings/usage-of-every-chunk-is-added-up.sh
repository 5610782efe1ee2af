#!/usr/bin/env bash
# Package: langchain-openai 1.7.4, pydantic-ai-slim 2.68.0, and openai 3.57.0 under both (PyPI).
# Behaviour: a provider that tells the usage so far in every chunk (vLLM's continuous_usage_stats, and others by themselves)
#   ends with 10 tokens in and 4 out. openai keeps the last word; LangChain and Pydantic AI add up what each chunk said.
# For us: exactly one chunk of a stream may carry a usage, the last one, whatever the provider sends.
# Seen: 10 in, 4 out, told in 5 chunks: openai 10/4, langchain-openai 50/14, pydantic-ai 50/14
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check openai==3.57.0 langchain-openai==1.7.4 \
  'pydantic-ai-slim[openai]==2.68.0'
"$dir/venv/bin/python" - <<'PY'
import asyncio
import json
import sys

import httpx2
import openai
from langchain_openai import ChatOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


def chunk(delta: dict[str, str], reason: str | None, out: int) -> str:
    usage = {"prompt_tokens": 10, "completion_tokens": out, "total_tokens": 10 + out}
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    about = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return f"data: {json.dumps({**about, 'choices': [choice], 'usage': usage})}\n\n"


stream = "".join(chunk({"content": "word "}, None, n) for n in (1, 2, 3, 4)) + chunk({}, "stop", 4) + "data: [DONE]\n\n"
headers = {"Content-Type": "text/event-stream"}
provider = httpx2.MockTransport(lambda _request: httpx2.Response(200, headers=headers, text=stream))
client = httpx2.Client(transport=provider)


async def pydantic_ai() -> str:
    here = OpenAIProvider(api_key="key", http_client=httpx2.AsyncClient(transport=provider))
    async with Agent(OpenAIChatModel("m", provider=here)).run_stream("hello") as run:
        await run.get_output()
        return f"{run.usage.input_tokens}/{run.usage.output_tokens}"


with openai.OpenAI(api_key="key", http_client=client).chat.completions.stream(model="m", messages=[]) as answer:
    last = answer.get_final_completion().usage
first, *others = ChatOpenAI(model="m", api_key="key", http_client=client).stream("hello")
summed = sum(others, start=first).usage_metadata
told = [f"{last.prompt_tokens}/{last.completion_tokens}", f"{summed['input_tokens']}/{summed['output_tokens']}"]
told.append(asyncio.run(pydantic_ai()))
print("10 in, 4 out, told in 5 chunks: openai {}, langchain-openai {}, pydantic-ai {}".format(*told))
sys.exit(told != ["10/4", "50/14", "50/14"])
PY
