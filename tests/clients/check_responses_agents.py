"""What a program does with openai-agents, which asks the Responses API by default: tools, handoffs, streamed, conversations."""

import asyncio
from collections.abc import Callable, Coroutine
from importlib.metadata import version
from typing import Any

import harness
from agents import (
    Agent,
    ModelSettings,
    OpenAIConversationsSession,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    function_tool,
)
from harness import ANSWER, TEXT, raises
from openai import AsyncOpenAI, BadRequestError

ASKED = "one two three"
QUIET = RunConfig(tracing_disabled=True)


@function_tool  # type: ignore[untyped-decorator]
def f(x: int) -> str:
    """Answers with a number."""
    return str(x + 3)


def with_client(check: Callable[[AsyncOpenAI], Coroutine[Any, Any, None]]) -> Callable[[str, str], None]:
    async def ask(base_url: str, key: str) -> None:
        async with AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=60) as client:
            await check(client)

    return lambda base_url, key: asyncio.run(ask(base_url, key))


def agent(client: AsyncOpenAI, model: str = "fake/echo", name: str = "a", **options: Any) -> Any:
    return Agent(name=name, model=OpenAIResponsesModel(model, openai_client=client), **options)


async def streamed(starting: Any, prompt: Any = ASKED, **options: Any) -> tuple[Any, list[Any]]:
    result = Runner.run_streamed(starting, prompt, run_config=QUIET, **options)
    return result, [event async for event in result.stream_events()]


@with_client
async def check_whole(client: AsyncOpenAI) -> None:
    result = await Runner.run(agent(client), ASKED, run_config=QUIET)
    assert (result.final_output, result.context_wrapper.usage.output_tokens) == (ASKED, 3)


@with_client
async def check_stream(client: AsyncOpenAI) -> None:
    result, events = await streamed(agent(client, "scripted/client-slow"))
    raw = [event.data for event in events if event.type == "raw_response_event"]
    assert "".join(event.delta for event in raw if event.type == "response.output_text.delta") == TEXT
    assert result.final_output == TEXT


@with_client
async def check_tools(client: AsyncOpenAI) -> None:
    for _ in range(2):
        result = await Runner.run(agent(client, "scripted/client-loops", tools=[f]), ASKED, run_config=QUIET)
        outputs = [item.output for item in result.new_items if item.type == "tool_call_output_item"]
        assert (outputs, result.final_output) == (["4"], ANSWER)
    result, events = await streamed(agent(client, "scripted/client-loops", tools=[f]))
    assert [event.name for event in events if event.type == "run_item_stream_event"].count("tool_called") == 1
    assert result.final_output == ANSWER


@with_client
async def check_tools_without_the_history(client: AsyncOpenAI) -> None:
    asked = agent(client, "scripted/client-loops", tools=[f])
    result = await Runner.run(asked, ASKED, run_config=QUIET, auto_previous_response_id=True)
    assert result.final_output == ANSWER


@with_client
async def check_handoffs(client: AsyncOpenAI) -> None:
    for is_streamed in (False, True):
        other = agent(client, "scripted/client-loops", "b", tools=[f])
        first = agent(client, "scripted/client-hands-over", handoffs=[other])
        if is_streamed:
            result, _ = await streamed(first)
        else:
            result = await Runner.run(first, ASKED, run_config=QUIET)
        assert (result.last_agent.name, result.final_output) == ("b", ANSWER)


@with_client
async def check_reasoning(client: AsyncOpenAI) -> None:
    settings = ModelSettings(reasoning={"summary": "auto"})
    result = await Runner.run(agent(client, "scripted/client-thinks", model_settings=settings), ASKED, run_config=QUIET)
    assert [item.type for item in result.new_items] == ["reasoning_item", "message_output_item"]
    again = await Runner.run(
        agent(client), [*result.to_input_list(), {"role": "user", "content": "four"}], run_config=QUIET
    )
    assert again.final_output == "four"


@with_client
async def check_conversation(client: AsyncOpenAI) -> None:
    session = OpenAIConversationsSession(openai_client=client)
    for prompt in (ASKED, "four"):
        assert (await Runner.run(agent(client), prompt, session=session, run_config=QUIET)).final_output == prompt
    assert len(await session.get_items()) == 4
    assert len(await session.get_items(3)) == 3
    popped: Any = await session.pop_item()
    assert popped["role"] == "assistant"
    await session.clear_session()
    made = await client.conversations.create()
    result = await Runner.run(agent(client), ASKED, conversation_id=made.id, run_config=QUIET)
    assert result.final_output == ASKED
    items = await client.conversations.items.list(made.id)
    assert len(items.data) == 2


@with_client
async def check_failures(client: AsyncOpenAI) -> None:
    with raises(BadRequestError, code="no_such_thing"):
        await Runner.run(agent(client, "scripted/client-refuses"), ASKED, run_config=QUIET)


if __name__ == "__main__":
    harness.run(globals(), version("openai-agents"))
