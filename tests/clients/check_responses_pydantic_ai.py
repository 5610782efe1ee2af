"""What a program does with Pydantic AI over the Responses API."""

import asyncio
from importlib.metadata import version
from typing import Any

import harness
from harness import ANSWER, CALLS, PARAMETERS, TEXT, THOUGHT, raises
from pydantic_ai import Agent, ModelHTTPError, ModelRequest, ToolDefinition
from pydantic_ai.direct import model_request_sync
from pydantic_ai.messages import ThinkingPart, ToolCallPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.openai import OpenAIResponsesModel, OpenAIResponsesModelSettings
from pydantic_ai.profiles.openai import OpenAIModelProfile
from pydantic_ai.providers.openai import OpenAIProvider

ASKED = "one two three"
QUESTION = [ModelRequest.user_text_prompt(ASKED)]


def model(base_url: str, key: str, name: str = "fake/echo") -> OpenAIResponsesModel:
    """For one event loop, and there is a new one for each call."""
    return OpenAIResponsesModel(name, provider=OpenAIProvider(base_url=base_url, api_key=key))


def check_whole(base_url: str, key: str) -> None:
    result = Agent(model(base_url, key)).run_sync(ASKED)
    assert (result.output, result.usage.output_tokens) == (ASKED, 3)


def check_stream(base_url: str, key: str) -> None:
    async def ask() -> str:
        async with Agent(model(base_url, key, "scripted/client-slow")).run_stream(ASKED) as result:
            return "".join([text async for text in result.stream_text(delta=True, debounce_by=None)])

    assert asyncio.run(ask()) == TEXT


def check_tool_calls(base_url: str, key: str) -> None:
    tools = [ToolDefinition(name=name, parameters_json_schema=PARAMETERS) for name in "fg"]
    parameters = ModelRequestParameters(function_tools=tools)
    answer = model_request_sync(
        model(base_url, key, "scripted/client-tools"), QUESTION, model_request_parameters=parameters
    )
    calls = [part for part in answer.parts if isinstance(part, ToolCallPart)]
    assert [(call.tool_call_id, call.tool_name, call.args_as_dict()) for call in calls] == CALLS


def check_reasoning(base_url: str, key: str) -> None:
    settings = OpenAIResponsesModelSettings(openai_reasoning_summary="auto")
    answer = model_request_sync(model(base_url, key, "scripted/client-thinks"), QUESTION, model_settings=settings)
    assert "".join(part.content for part in answer.parts if isinstance(part, ThinkingPart)) == THOUGHT
    assert answer.text == ANSWER


def check_conversation(base_url: str, key: str) -> None:
    """The history is sent in full, and by `previous_response_id`."""
    place: Any = (base_url, key)
    first = Agent(model(*place)).run_sync(ASKED)
    settings = OpenAIResponsesModelSettings(openai_previous_response_id="auto")
    for options in ({}, {"model_settings": settings}):
        again = Agent(model(*place)).run_sync("four", message_history=first.all_messages(), **options)
        assert again.output == "four"


def check_background(base_url: str, key: str) -> None:
    """It is polled until it has ended, and streamed."""
    settings = OpenAIResponsesModelSettings(openai_background=True)
    assert Agent(model(base_url, key, "scripted/client-slow"), model_settings=settings).run_sync(ASKED).output == TEXT

    async def ask() -> str:
        agent = Agent(model(base_url, key, "scripted/client-slow"), model_settings=settings)
        async with agent.run_stream(ASKED) as result:
            return "".join([text async for text in result.stream_text(delta=True, debounce_by=None)])

    assert asyncio.run(ask()) == TEXT


def check_carried_reasoning(base_url: str, key: str) -> None:
    """Nothing is stored, and the history has what the model thought, as for OpenAI's own models."""
    settings = OpenAIResponsesModelSettings(openai_store=False)

    def thinking() -> OpenAIResponsesModel:
        profile = OpenAIModelProfile(openai_supports_encrypted_reasoning_content=True)
        provider = OpenAIProvider(base_url=base_url, api_key=key)
        return OpenAIResponsesModel("scripted/client-thinks", provider=provider, profile=profile)

    answer = model_request_sync(thinking(), QUESTION, model_settings=settings)
    assert any(part.signature for part in answer.parts if isinstance(part, ThinkingPart))
    history = [*QUESTION, answer, ModelRequest.user_text_prompt("four")]
    assert model_request_sync(thinking(), history, model_settings=settings).text == ANSWER


def check_refusal(base_url: str, key: str) -> None:
    with raises(ModelHTTPError, status_code=400):
        Agent(model(base_url, key, "scripted/client-refuses")).run_sync(ASKED)


if __name__ == "__main__":
    harness.run(globals(), version("pydantic-ai-slim"))
