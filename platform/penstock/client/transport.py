"""Requests to the server: the key, retries where they are safe, and errors as exceptions."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, Final

import httpx

import penstock
from penstock.client.backoff import LONGEST_ASKED_SECONDS, asked_pause, pause
from penstock.client.config import Connection
from penstock.client.errors import GATEWAY_STATUSES, ConnectionFailed, UnexpectedAnswer, error_from
from penstock.errors import IdempotencyKeyInUse, PenstockError

IDEMPOTENCY_HEADER: Final = "Idempotency-Key"
_REFUSED_FOR_NOW: Final = frozenset({429, 503})
_STREAM_TYPE: Final = "text/event-stream"
_NEVER_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
Upload = tuple[str, IO[bytes], str]
"""A file's name, its bytes, and their type."""

STREAM_SILENCE_SECONDS: Final = 45.0
"""A stream that is silent for so long is dead: the server sends a comment every 15 seconds."""


class Transport:
    """One server and one key. Thread-safe.

    A GET, and what carries an `Idempotency-Key`, is repeated after every connection error and after 429, 502, 503, 504.
    Anything else is repeated only where the server cannot have acted on it: when the connection was never made, and
    after 429.
    """

    def __init__(self, connection: Connection, *, timeout: float, max_retries: int) -> None:
        self.url = connection.url
        self._max_retries = max_retries
        self._timeout = timeout
        self._http = httpx.Client(
            base_url=connection.url,
            timeout=timeout,
            headers={
                "Authorization": f"Bearer {connection.api_key}",
                "User-Agent": f"penstock-python/{penstock.__version__}",
                "Accept": "application/json, application/problem+json",
            },
        )

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
        request = self._http.build_request(method, path, params=_query(query), json=body, headers=headers)
        failures = 0
        while True:
            failures += 1
            try:
                response = self._http.send(request)
            except httpx.RequestError as error:
                if failures > self._max_retries or not (_acts_once(request) or isinstance(error, _NEVER_SENT)):
                    raise self.connection_failed(error) from error
                time.sleep(pause(failures))
                continue
            if response.is_success:
                return _object(response) if response.status_code != httpx.codes.NO_CONTENT else {}
            delay = self._repeat_in(request, response, failures)
            if delay is None:
                raise error_from(response)
            time.sleep(delay)

    def upload(self, path: str, fields: Mapping[str, str], file: Upload) -> dict[str, Any]:
        """The answer to a form whose file is sent as it is read; sent once. Raises as `request` does."""
        try:
            response = self._http.post(path, data=dict(fields), files={"file": file})
        except httpx.RequestError as error:
            raise self.connection_failed(error) from error
        if not response.is_success:
            raise error_from(response)
        return _object(response)

    def download(self, path: str, write: Callable[[bytes], object]) -> None:
        """Have each piece of the body written as it comes; a lost connection goes on where it broke off."""
        received, failures, known = 0, 0, ""
        while True:
            part = {"Range": f"bytes={received}-", "If-Range": known} if received else {}
            try:
                with self._http.stream("GET", path, headers=part) as response:
                    _refuse_failure(response, partial=bool(received))
                    known = response.headers.get("ETag", "")
                    for piece in response.iter_raw():
                        write(piece)
                        received, failures = received + len(piece), 0
                return
            except httpx.RequestError as error:
                failures += 1
                if failures > self._max_retries or (received and not known):
                    raise self.connection_failed(error) from error
                time.sleep(pause(failures))

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """One response whose body is read as it comes; not repeated. Raises its error, or what httpx raises."""
        timeout = httpx.Timeout(self._timeout, read=STREAM_SILENCE_SECONDS)
        with self._http.stream("GET", path, headers={"Accept": _STREAM_TYPE, **headers}, timeout=timeout) as response:
            if not response.is_success:
                response.read()
                raise _with_pause(error_from(response), response)
            if response.status_code != httpx.codes.NO_CONTENT:
                _refuse_other_than(_STREAM_TYPE, response)
            yield response

    def connection_failed(self, error: Exception) -> ConnectionFailed:
        """That error, told with the address."""
        reason = str(error) or type(error).__name__
        return ConnectionFailed(
            f"{self.url} does not answer ({reason}); is the server running, and is that its address?"
        )

    def _repeat_in(self, request: httpx.Request, response: httpx.Response, failures: int) -> float | None:
        """Seconds after which to repeat, or None when that is not safe, not asked for, or too far away."""
        refused = response.status_code == 429 or (_acts_once(request) and _refused_for_now(response))
        if not refused or failures > self._max_retries:
            return None
        asked = asked_pause(response) or 0.0
        return max(asked, pause(failures)) if asked <= LONGEST_ASKED_SECONDS else None


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


def _query(query: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (query or {}).items() if value is not None}


def _object(response: httpx.Response) -> dict[str, Any]:
    try:
        document = response.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise UnexpectedAnswer(f"{response.request.url} did not answer with a JSON object; is it a Penstock server's?")
    return document


def _refuse_failure(response: httpx.Response, *, partial: bool) -> None:
    """Raise the server's error; also when a part was asked for and something else comes."""
    if not response.is_success:
        response.read()
        raise error_from(response)
    if partial and response.status_code != httpx.codes.PARTIAL_CONTENT:
        raise UnexpectedAnswer(f"{response.request.url} changed while it was read; begin again")


def _refuse_other_than(media_type: str, response: httpx.Response) -> None:
    given = response.headers.get("Content-Type", "nothing")
    if given.partition(";")[0].strip().lower() != media_type:
        raise UnexpectedAnswer(f"{response.request.url} answered with {given} instead of {media_type}")


def _with_pause(error: PenstockError, response: httpx.Response) -> PenstockError:
    asked = asked_pause(response)
    if asked is not None:
        error.extra["retry_after"] = asked
    return error
