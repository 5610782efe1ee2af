"""What OpenAI's SDK for Python makes of streams: one JSON object, by model. Arguments: base URL, key, and the models."""

import json
import sys
from typing import Any

import openai


def read(client: openai.OpenAI, model: str) -> dict[str, Any]:
    messages: Any = [{"role": "user", "content": "one two three"}]
    with client.chat.completions.stream(
        model=model, messages=messages, stream_options={"include_usage": True}
    ) as stream:
        for _ in stream:
            pass
        answer = stream.get_final_completion()
    [choice] = answer.choices
    calls = [[call.id, call.function.name, call.function.arguments] for call in choice.message.tool_calls or ()]
    usage = answer.usage and [answer.usage.prompt_tokens, answer.usage.completion_tokens]
    return {"text": choice.message.content or "", "calls": calls, "finish": choice.finish_reason, "usage": usage}


def main() -> None:
    url, key, models = sys.argv[1:]
    client = openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=60)
    report = {}
    for model in json.loads(models):
        try:
            report[model] = read(client, model)
        except (openai.OpenAIError, AssertionError, IndexError, TypeError) as error:
            report[model] = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
