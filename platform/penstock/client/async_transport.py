"""Requests to the server by asyncio: what `Transport` does, without holding a thread."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

import httpx

from penstock.client.config import Connection
from penstock.client.errors import UnexpectedAnswer
from penstock.client.patience import Patience
from penstock.client.reading import Listening, Pages, Reader, T, Waiting
from penstock.client.transport import (
    Attempts,
    answer_of,
    connection_failed,
    given_query,
    http_options,
    is_over,
    refused_for_now,
    stream_options,
)
from penstock.errors import PenstockError


class AsyncTransport:
    """One server and one key, for one event loop. What is repeated, and when, `Attempts` tells."""

    def __init__(self, connection: Connection, *, timeout: float, max_retries: int) -> None:
        self.url = connection.url
        self._max_retries = max_retries
        self._timeout = timeout
        self._http = httpx.AsyncClient(**http_options(connection, timeout))

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """The JSON object that the server answers with, empty where it answers with nothing.

        Raises its error, or one of `penstock.client.errors`.
        """
        request = self._http.build_request(method, path, params=given_query(query), json=body, headers=headers)
        attempts = Attempts(request, url=self.url, max_retries=self._max_retries)
        while True:
            try:
                response = await self._http.send(request)
            except httpx.RequestError as error:
                await asyncio.sleep(attempts.pause_after_error(error))
                continue
            seconds = attempts.pause_after(response)
            if seconds is None:
                return answer_of(response)
            await asyncio.sleep(seconds)

    async def pages(self, pages: Pages[T]) -> AsyncIterator[T]:
        """All that is listed; each page is fetched when the iterator gets there."""
        while pages.more:
            for item in pages.take(await self.request("GET", pages.path, query=pages.query)):
                yield item

    async def read(self, reader: Reader[T], patience: Patience) -> AsyncIterator[T]:
        """All that the stream tells. A connection that breaks is made again, until patience ends with nothing new.

        Raises `ConnectionFailed` then. A refusal that is not for now (`NotFound`, `Unauthenticated`, ...) is raised at
        once.
        """
        while not reader.ended:
            try:
                async with aclosing(self._one_connection(reader, patience)) as items:
                    async for item in items:
                        yield item
            except httpx.RequestError as error:
                await asyncio.sleep(patience.pause_after(connection_failed(self.url, error)))
            except PenstockError as error:
                await asyncio.sleep(patience.pause_after(refused_for_now(error)))
            else:
                if not reader.ended:
                    await asyncio.sleep(patience.pause_after(UnexpectedAnswer(reader.cut_short())))

    async def poll(self, waiting: Waiting[T], patience: Patience) -> T:
        """The document once it is over. Outages are borne."""
        while True:
            try:
                document, seconds = waiting.take(await self.request("GET", waiting.path))
            except PenstockError as error:
                await asyncio.sleep(patience.pause_after(refused_for_now(error)))
                continue
            patience.note_progress()
            if seconds is None:
                return document
            await asyncio.sleep(seconds)

    async def _one_connection(self, reader: Reader[T], patience: Patience) -> AsyncGenerator[T, None]:
        if (query := reader.question()) is not None:
            reader.learn(await self.request("GET", reader.path, query=query))
        async with self._http.stream("GET", reader.path, **stream_options(reader, self._timeout)) as response:
            if not response.is_success:
                await response.aread()
            reader.ended = is_over(response)
            listening = Listening(reader, patience)
            async for chunk in response.aiter_bytes():
                for item in listening.hear(chunk):
                    yield item
                if reader.ended:
                    return
