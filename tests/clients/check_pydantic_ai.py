"""What a program with Pydantic AI does."""

import asyncio
from importlib.metadata import version

import harness
from harness import ANSWER, CALLS, PARAMETERS, TEXT, THOUGHT, raises
from pydantic_ai import Agent, ModelHTTPError, ModelRequest, ModelResponse, ToolDefinition
from pydantic_ai.direct import model_request, model_request_stream, model_request_sync
from pydantic_ai.exceptions import ModelAPIError
from pydantic_ai.messages import ThinkingPart, ToolCallPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

ASKED = "one two three"
QUESTION = [ModelRequest.user_text_prompt(ASKED)]


def model(base_url: str, key: str, name: str = "fake/echo") -> OpenAIChatModel:
    """For one event loop, and there is a new one for each call."""
    return OpenAIChatModel(name, provider=OpenAIProvider(base_url=base_url, api_key=key))


def check_whole(base_url: str, key: str) -> None:
    result = Agent(model(base_url, key)).run_sync(ASKED)
    assert result.output == ASKED
    assert result.usage.output_tokens == 3


def check_stream(base_url: str, key: str) -> None:
    async def ask() -> list[str]:
        async with Agent(model(base_url, key, "scripted/client-slow")).run_stream(ASKED) as result:
            return [text async for text in result.stream_text(delta=True, debounce_by=None)]

    pieces = asyncio.run(ask())
    assert "".join(pieces) == TEXT
    assert len(pieces) > 1


def check_stream_with_usage(base_url: str, key: str) -> None:
    assert streamed(model(base_url, key)).usage.output_tokens == 3


def check_tool_calls(base_url: str, key: str) -> None:
    tools = [ToolDefinition(name=name, parameters_json_schema=PARAMETERS) for name in "fg"]
    parameters = ModelRequestParameters(function_tools=tools)
    place = (base_url, key, "scripted/client-tools")
    whole = model_request_sync(model(*place), QUESTION, model_request_parameters=parameters)
    for answer in (whole, streamed(model(*place), parameters)):
        calls = [part for part in answer.parts if isinstance(part, ToolCallPart)]
        assert [(call.tool_call_id, call.tool_name, call.args_as_dict()) for call in calls] == CALLS


def check_reasoning(base_url: str, key: str) -> None:
    place = (base_url, key, "scripted/client-thinks")
    for answer in (model_request_sync(model(*place), QUESTION), streamed(model(*place))):
        assert "".join(part.content for part in answer.parts if isinstance(part, ThinkingPart)) == THOUGHT
        assert answer.text == ANSWER


def check_refusal(base_url: str, key: str) -> None:
    with raises(ModelHTTPError, status_code=400):
        model_request_sync(model(base_url, key, "scripted/client-refuses"), QUESTION)


def check_rate_limit(base_url: str, key: str) -> None:
    with raises(ModelHTTPError, status_code=429):
        model_request_sync(model(base_url, key, "scripted/client-limit"), QUESTION)


def check_error_in_the_middle(base_url: str, key: str) -> None:
    with raises(ModelAPIError):
        streamed(model(base_url, key, "scripted/client-broken"))


def check_async(base_url: str, key: str) -> None:
    answer = asyncio.run(model_request(model(base_url, key, "scripted/client-slow"), QUESTION))
    assert answer.text == TEXT


def check_hang_up(base_url: str, key: str) -> None:
    async def ask() -> None:
        async with model_request_stream(model(base_url, key, "scripted/client-waits"), QUESTION) as stream:
            async for _ in stream:
                if (stream.get().text or "").endswith("w1 "):
                    return

    asyncio.run(ask())


def streamed(asked: OpenAIChatModel, parameters: ModelRequestParameters | None = None) -> ModelResponse:
    """The answer that a stream adds up to."""

    async def ask() -> ModelResponse:
        async with model_request_stream(asked, QUESTION, model_request_parameters=parameters) as stream:
            async for _ in stream:
                pass
            return stream.get()

    return asyncio.run(ask())


if __name__ == "__main__":
    harness.run(globals(), version("pydantic-ai-slim"))
