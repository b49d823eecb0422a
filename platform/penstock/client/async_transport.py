"""Requests to the server by asyncio: what `Transport` does, without holding a thread."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx

from penstock.client.config import Connection
from penstock.client.errors import UnexpectedAnswer
from penstock.client.patience import Patience
from penstock.client.reading import Listening, Pages, Reader, T, Upload, Waiting
from penstock.client.transport import (
    Attempts,
    Download,
    answer_of,
    answer_to_upload,
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
        async for document in self.follow(waiting, patience):
            last = document
        return last

    async def follow(self, waiting: Waiting[T], patience: Patience) -> AsyncIterator[T]:
        """The document as it stands whenever it is asked for, to its end. Outages are borne."""
        while True:
            try:
                document, seconds = waiting.take(await self.request("GET", waiting.path))
            except PenstockError as error:
                await asyncio.sleep(patience.pause_after(refused_for_now(error)))
                continue
            patience.note_progress()
            yield document
            if seconds is None:
                return
            await asyncio.sleep(seconds)

    async def upload(self, upload: Upload) -> dict[str, Any]:
        """The answer to a form whose file is sent as it is read; sent once. Raises as `request` does."""
        with upload.opened() as form:
            try:
                response = await self._http.post(upload.path, **form)
            except httpx.RequestError as error:
                raise connection_failed(self.url, error) from error
        return answer_to_upload(response)

    async def fetch(self, path: str) -> bytes:
        """All bytes at a path, in memory; a lost connection goes on where it broke off."""
        into = BytesIO()
        await self._download(path, into.write)
        return into.getvalue()

    async def save(self, path: str, target: Path) -> None:
        """Write the bytes at a path to a file as they come; a lost connection goes on where it broke off."""
        with await asyncio.to_thread(target.open, "wb") as out:
            await self._download(path, out.write)

    async def _download(self, path: str, write: Callable[[bytes], object]) -> None:
        download = Download(self.url, self._max_retries)
        while True:
            try:
                async with self._http.stream("GET", path, headers=download.headers) as response:
                    if not response.is_success:
                        await response.aread()
                    download.begin(response)
                    async for piece in response.aiter_raw():
                        write(piece)
                        download.note(piece)
                return
            except httpx.RequestError as error:
                await asyncio.sleep(download.pause_after(error))

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
