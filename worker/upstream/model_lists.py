"""Asking a provider for its list of models: a few small requests, which give up soon.

Hidden here: pages, details that are asked for one by one, and how much is read. What a list means is
worker/providers/model_list.py's.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

from shared.errors import UpstreamError, UpstreamInvalid, UpstreamTimeout
from shared.lib import http, json
from shared.lib.proxies import NO_PROXIES, Proxies
from worker.providers.errors import error_from_response, parse
from worker.providers.model_list import Model, Question, bounded, details, models, next_page, questions, with_details
from worker.providers.registry import Provider

CONNECT_S = 2.0
LIST_S = 5.0
DETAILS_S = 5.0
"""How long a whole list may take, and then what is asked of single models."""
_MAX_BYTES = 8 * 1024 * 1024
_MAX_PAGES = 10
_MAX_DETAILS, _DETAILS_AT_ONCE = 100, 4
_NO_LIST = (404, 405, 501)


class ModelLists:
    """An async context manager that owns a client of its own: an answer's connections are not waited for."""

    def __init__(self, proxies: Proxies = NO_PROXIES) -> None:
        self._client = http.open_client(CONNECT_S, proxies)

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, error, trace)

    async def ask(self, provider: Provider) -> list[Model]:
        """What the provider lists, within bounds; empty where it has no list. It has to have `questions`.

        Raises UpstreamError: refused, not reached, too slow (UpstreamTimeout), or no list of models (UpstreamInvalid).
        """
        try:
            async with asyncio.timeout(LIST_S):
                found = await self._list(provider)
        except TimeoutError:
            raise UpstreamTimeout(f"{provider.name}: no list of models within {LIST_S:g} s.") from None
        return bounded(await self._detailed(provider, found))

    async def _list(self, provider: Provider) -> list[Model]:
        *earlier, last = questions(provider)
        for question in earlier:
            try:
                return await self._pages(provider, question)
            except UpstreamError as error:
                if error.code == "upstream_connect_error":
                    raise
        try:
            return await self._pages(provider, last)
        except UpstreamError as error:
            if error.provider_status in _NO_LIST:
                return []
            raise

    async def _pages(self, provider: Provider, question: Question) -> list[Model]:
        found: list[Model] = []
        page: Question | None = question
        for _ in range(_MAX_PAGES):
            if page is None:
                break
            value = await self._get(provider, page)
            part = models(provider, value)
            if part is None:
                raise UpstreamInvalid(f"{provider.name}: what it answered is no list of models.")
            found += part
            page = next_page(page, value)
        return found

    async def _detailed(self, provider: Provider, found: list[Model]) -> list[Model]:
        """With what is told of each model by itself. Where that fails, the model is listed without it."""
        turns = asyncio.Semaphore(_DETAILS_AT_ONCE)

        async def one(model: Model, question: Question | None) -> Model | None:
            if question is None:
                return model
            try:
                async with turns:
                    return with_details(model, await self._get(provider, question))
            except UpstreamError:
                return model

        asked = [(model, details(provider, model) if at < _MAX_DETAILS else None) for at, model in enumerate(found)]
        tasks = [asyncio.create_task(one(*pair)) for pair in asked]
        if not tasks:
            return []
        try:
            done, _ = await asyncio.wait(tasks, timeout=DETAILS_S)
            told = [task.result() if task in done else model for task, model in zip(tasks, found, strict=True)]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [model for model in told if model is not None]

    async def _get(self, provider: Provider, question: Question) -> Any:
        headers = {"accept": "application/json", "accept-encoding": "identity", **question.headers}
        content = None
        if question.body is not None:
            headers["content-type"] = "application/json"
            content = json.dumps(question.body)
        try:
            method = "GET" if content is None else "POST"
            response = await self._client.request(method, question.url, headers=headers, content=content)
            try:
                body = bytearray()
                async for data in response.pieces():
                    body += data
                    if len(body) > _MAX_BYTES:
                        raise UpstreamInvalid(f"{provider.name}: a list of models of more than {_MAX_BYTES} bytes.")
            finally:
                response.close()
        except (http.TransportError, http.InvalidURL) as error:
            message = f"{provider.name}: no connection ({http.reason(error)})."
            raise UpstreamError(message, code="upstream_connect_error") from None
        if response.status_code != 200:
            raise error_from_response(provider, response.status_code, response.headers, bytes(body))
        return parse(bytes(body))
