"""What a program does with LangChain's ChatOpenAI over the Responses API."""

from importlib.metadata import version
from typing import Any

import harness
import openai
from harness import ANSWER, CALLS, TEXT, THOUGHT, TOOLS, raises
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

ASKED = "one two three"


def chat(base_url: str, key: str, model: str = "fake/echo", **options: Any) -> ChatOpenAI:
    return ChatOpenAI(
        model=model, base_url=base_url, api_key=key, timeout=60, max_retries=0, use_responses_api=True, **options
    )


def check_whole(base_url: str, key: str) -> None:
    answer = chat(base_url, key).invoke(ASKED)
    assert (answer.text, answer.usage_metadata["output_tokens"]) == (ASKED, 3)


def check_stream(base_url: str, key: str) -> None:
    chunks = list(chat(base_url, key, "scripted/client-slow").stream(ASKED))
    assert "".join(chunk.text for chunk in chunks) == TEXT
    assert len(chunks) > 5


def check_tool_calls(base_url: str, key: str) -> None:
    model = chat(base_url, key, "scripted/client-tools").bind_tools(TOOLS)
    first, *rest = model.stream(ASKED)
    for answer in (sum(rest, first), model.invoke(ASKED)):
        assert [(call["id"], call["name"], call["args"]) for call in answer.tool_calls] == CALLS


def check_reasoning(base_url: str, key: str) -> None:
    answer = chat(base_url, key, "scripted/client-thinks", reasoning={"summary": "auto"}).invoke(ASKED)
    (thought,) = [block for block in answer.content_blocks if block["type"] == "reasoning"]
    assert (thought["reasoning"], answer.text) == (THOUGHT, ANSWER)


def check_conversation(base_url: str, key: str) -> None:
    """The history is sent in full, and by `previous_response_id`."""
    for by_id in (False, True):
        model = chat(base_url, key, use_previous_response_id=by_id)
        first = model.invoke(ASKED)
        assert model.invoke([("user", ASKED), first, ("user", "four")]).text == "four"


def check_carried_reasoning(base_url: str, key: str) -> None:
    """Nothing is stored, and the history that is sent in full has what the model thought."""
    model = chat(base_url, key, "scripted/client-loops", store=False, include=["reasoning.encrypted_content"])
    first = model.bind_tools(TOOLS).invoke(ASKED)
    (call,) = first.tool_calls
    again = model.bind_tools(TOOLS).invoke(
        [("user", ASKED), first, {"role": "tool", "content": "4", "tool_call_id": call["id"]}]
    )
    assert again.text == ANSWER


def check_embeddings(base_url: str, key: str) -> None:
    """A model that OpenAI has is sent tokens, all others text."""
    model = OpenAIEmbeddings(
        model="fake/echo", base_url=base_url, api_key=key, check_embedding_ctx_length=False, dimensions=16
    )
    first, other, again = model.embed_documents(["one", "two", "one"])
    assert len(first) == 16
    assert first == again == model.embed_query("one")
    assert first != other


def check_refusal(base_url: str, key: str) -> None:
    with raises(openai.BadRequestError, code="no_such_thing"):
        chat(base_url, key, "scripted/client-refuses").invoke(ASKED)


if __name__ == "__main__":
    harness.run(globals(), version("langchain-openai"))
