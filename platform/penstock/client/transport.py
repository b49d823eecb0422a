"""Requests to the server: the key, retries where they are safe, and errors as exceptions."""

import time
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import httpx

import penstock
from penstock.client.backoff import LONGEST_ASKED_SECONDS, asked_pause, pause
from penstock.client.config import Connection
from penstock.client.errors import GATEWAY_STATUSES, ConnectionFailed, UnexpectedAnswer, error_from
from penstock.client.patience import Patience
from penstock.client.reading import Listening, Pages, Reader, T, Upload, Waiting
from penstock.errors import IdempotencyKeyInUse, PenstockError

IDEMPOTENCY_HEADER: Final = "Idempotency-Key"
_REFUSED_FOR_NOW: Final = frozenset({429, 503})
_STREAM_TYPE: Final = "text/event-stream"
_NEVER_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
STREAM_SILENCE_SECONDS: Final = 45.0
"""A stream that is silent for so long is dead: the server sends a comment every 15 seconds."""


class Attempts:
    """The tries of one request: when to try again, and with what to give up.

    A GET, and what carries an `Idempotency-Key`, is repeated after every connection error and after 429, 502, 503, 504.
    Anything else is repeated only where the server cannot have acted on it: when the connection was never made, and
    after 429.
    """

    def __init__(self, request: httpx.Request, *, url: str, max_retries: int) -> None:
        self._request, self._url, self._max_retries = request, url, max_retries
        self._failures = 0

    def pause_after_error(self, error: httpx.RequestError) -> float:
        """The seconds to wait before the next try. Raises `ConnectionFailed` when there is none."""
        self._failures += 1
        safe = _acts_once(self._request) or isinstance(error, _NEVER_SENT)
        if self._failures > self._max_retries or not safe:
            raise connection_failed(self._url, error) from error
        return pause(self._failures)

    def pause_after(self, response: httpx.Response) -> float | None:
        """The same after an answer; None when it is one. Raises the error that it tells when there is no next try."""
        if response.is_success:
            return None
        self._failures += 1
        refused = response.status_code == 429 or (_acts_once(self._request) and _refused_for_now(response))
        asked = asked_pause(response) or 0.0
        if not refused or self._failures > self._max_retries or asked > LONGEST_ASKED_SECONDS:
            raise error_from(response)
        return max(asked, pause(self._failures))


class Download:
    """What came of a body so far, over as many connections as it takes."""

    def __init__(self, url: str, max_retries: int) -> None:
        self._url, self._max_retries = url, max_retries
        self._received, self._failures, self._known = 0, 0, ""

    @property
    def headers(self) -> dict[str, str]:
        """Those that ask for the rest of it."""
        return {"Range": f"bytes={self._received}-", "If-Range": self._known} if self._received else {}

    def begin(self, response: httpx.Response) -> None:
        """Raise the server's error; also when a part was asked for and something else comes."""
        if not response.is_success:
            raise error_from(response)
        if self._received and response.status_code != httpx.codes.PARTIAL_CONTENT:
            raise UnexpectedAnswer(f"{response.request.url} changed while it was read; begin again")
        self._known = response.headers.get("ETag", "")

    def note(self, piece: bytes) -> None:
        """Count what came."""
        self._received, self._failures = self._received + len(piece), 0

    def pause_after(self, error: httpx.RequestError) -> float:
        """The seconds to wait before another connection. Raises `ConnectionFailed` when there is none."""
        self._failures += 1
        if self._failures > self._max_retries or (self._received and not self._known):
            raise connection_failed(self._url, error) from error
        return pause(self._failures)


class Transport:
    """One server and one key. Thread-safe. What is repeated, and when, `Attempts` tells."""

    def __init__(self, connection: Connection, *, timeout: float, max_retries: int) -> None:
        self.url = connection.url
        self._max_retries = max_retries
        self._timeout = timeout
        self._http = httpx.Client(**http_options(connection, timeout))

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    def request(
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
                response = self._http.send(request)
            except httpx.RequestError as error:
                time.sleep(attempts.pause_after_error(error))
                continue
            seconds = attempts.pause_after(response)
            if seconds is None:
                return answer_of(response)
            time.sleep(seconds)

    def pages(self, pages: Pages[T]) -> Iterator[T]:
        """All that is listed; each page is fetched when the iterator gets there."""
        while pages.more:
            yield from pages.take(self.request("GET", pages.path, query=pages.query))

    def read(self, reader: Reader[T], patience: Patience) -> Iterator[T]:
        """All that the stream tells. A connection that breaks is made again, until patience ends with nothing new.

        Raises `ConnectionFailed` then. A refusal that is not for now (`NotFound`, `Unauthenticated`, ...) is raised at
        once.
        """
        while not reader.ended:
            try:
                yield from self._one_connection(reader, patience)
            except httpx.RequestError as error:
                patience.bear(connection_failed(self.url, error))
            except PenstockError as error:
                patience.bear(refused_for_now(error))
            else:
                if not reader.ended:
                    patience.bear(UnexpectedAnswer(reader.cut_short()))

    def poll(self, waiting: Waiting[T], patience: Patience) -> T:
        """The document once it is over. Outages are borne."""
        for document in self.follow(waiting, patience):
            last = document
        return last

    def follow(self, waiting: Waiting[T], patience: Patience) -> Iterator[T]:
        """The document as it stands whenever it is asked for, to its end. Outages are borne."""
        while True:
            try:
                document, seconds = waiting.take(self.request("GET", waiting.path))
            except PenstockError as error:
                patience.bear(refused_for_now(error))
                continue
            patience.note_progress()
            yield document
            if seconds is None:
                return
            time.sleep(seconds)

    def upload(self, upload: Upload) -> dict[str, Any]:
        """The answer to a form whose file is sent as it is read; sent once. Raises as `request` does."""
        with upload.opened() as form:
            try:
                response = self._http.post(upload.path, **form)
            except httpx.RequestError as error:
                raise connection_failed(self.url, error) from error
        return answer_to_upload(response)

    def fetch(self, path: str) -> bytes:
        """All bytes at a path, in memory; a lost connection goes on where it broke off."""
        into = BytesIO()
        self._download(path, into.write)
        return into.getvalue()

    def save(self, path: str, target: Path) -> None:
        """Write the bytes at a path to a file as they come; a lost connection goes on where it broke off."""
        with target.open("wb") as out:
            self._download(path, out.write)

    def _download(self, path: str, write: Callable[[bytes], object]) -> None:
        download = Download(self.url, self._max_retries)
        while True:
            try:
                with self._http.stream("GET", path, headers=download.headers) as response:
                    if not response.is_success:
                        response.read()
                    download.begin(response)
                    for piece in response.iter_raw():
                        write(piece)
                        download.note(piece)
                return
            except httpx.RequestError as error:
                time.sleep(download.pause_after(error))

    def _one_connection(self, reader: Reader[T], patience: Patience) -> Iterator[T]:
        if (query := reader.question()) is not None:
            reader.learn(self.request("GET", reader.path, query=query))
        with self._http.stream("GET", reader.path, **stream_options(reader, self._timeout)) as response:
            if not response.is_success:
                response.read()
            reader.ended = is_over(response)
            listening = Listening(reader, patience)
            for chunk in response.iter_bytes():
                yield from listening.hear(chunk)
                if reader.ended:
                    return


def http_options(connection: Connection, timeout: float) -> dict[str, Any]:
    """What httpx's clients are made with."""
    headers = {
        "Authorization": f"Bearer {connection.api_key}",
        "User-Agent": f"penstock-python/{penstock.__version__}",
        "Accept": "application/json, application/problem+json",
    }
    return {"base_url": connection.url, "timeout": timeout, "headers": headers}


def stream_options(reader: Reader[Any], timeout: float) -> dict[str, Any]:
    """What a stream is asked for with."""
    headers = {"Accept": _STREAM_TYPE, **reader.headers()}
    return {"headers": headers, "timeout": httpx.Timeout(timeout, read=STREAM_SILENCE_SECONDS)}


def is_over(response: httpx.Response) -> bool:
    """Whether the answer to a request for a stream is that there is no more. Raises the error that it tells."""
    if not response.is_success:
        raise _with_pause(error_from(response), response)
    if response.status_code == httpx.codes.NO_CONTENT:
        return True
    _refuse_other_than(_STREAM_TYPE, response)
    return False


def connection_failed(url: str, error: Exception) -> ConnectionFailed:
    """That error, told with the address."""
    reason = str(error) or type(error).__name__
    return ConnectionFailed(f"{url} does not answer ({reason}); is the server running, and is that its address?")


def refused_for_now(error: PenstockError) -> PenstockError:
    """The error, where trying again may help; any other is raised."""
    if not is_temporary(error):
        raise error
    return error


def is_temporary(error: PenstockError) -> bool:
    """Whether the server refused only for now."""
    return error.status in _REFUSED_FOR_NOW


def _acts_once(request: httpx.Request) -> bool:
    """Whether the server acts on it once, however often it arrives."""
    return request.method == "GET" or IDEMPOTENCY_HEADER in request.headers


def _refused_for_now(response: httpx.Response) -> bool:
    if response.status_code == IdempotencyKeyInUse.status:
        return error_from(response).code == IdempotencyKeyInUse.code
    return response.status_code in GATEWAY_STATUSES


def given_query(query: Mapping[str, Any] | None) -> dict[str, Any]:
    """The parameters that are not None."""
    return {name: value for name, value in (query or {}).items() if value is not None}


def answer_to_upload(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of a good answer. Raises the error that any other one tells."""
    if not response.is_success:
        raise error_from(response)
    return _object(response)


def answer_of(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of a good answer, empty where there is none. Raises `UnexpectedAnswer`."""
    return _object(response) if response.status_code != httpx.codes.NO_CONTENT else {}


def _object(response: httpx.Response) -> dict[str, Any]:
    try:
        document = response.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise UnexpectedAnswer(f"{response.request.url} did not answer with a JSON object; is it a Penstock server's?")
    return document


def _refuse_other_than(media_type: str, response: httpx.Response) -> None:
    given = response.headers.get("Content-Type", "nothing")
    if given.partition(";")[0].strip().lower() != media_type:
        raise UnexpectedAnswer(f"{response.request.url} answered with {given} instead of {media_type}")


def _with_pause(error: PenstockError, response: httpx.Response) -> PenstockError:
    asked = asked_pause(response)
    if asked is not None:
        error.extra["retry_after"] = asked
    return error
