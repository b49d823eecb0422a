"""What the client raises: the server's own errors, as the classes of `penstock.errors`, and its own.

PenstockError
├── (all of penstock.errors)     what the server answered, with `code`, `status`, `field`, `message` and `extra`
├── UnknownProblem               the server answered with a code that this client does not know
├── ConnectionFailed             the server (or a proxy's way to it) does not answer
├── UnexpectedAnswer             what answers there is not Penstock
├── WaitTimedOut                 the job has not finished in the time that was given
└── WebhookInvalid               a webhook is not from whom it says, altered, or too old
"""

from collections.abc import Iterator
from typing import Any, Final

import httpx

from penstock import errors
from penstock.errors import PenstockError

GATEWAY_STATUSES: Final = frozenset({502, 503, 504})
_STANDARD_MEMBERS: Final = frozenset({"type", "title", "status", "code", "detail", "field"})


class UnknownProblem(PenstockError):
    """The server answered with an error that this client has no class for; `code` and `status` are the server's."""

    code = "unknown_problem"


class ConnectionFailed(PenstockError):
    """The server could not be reached, or stopped answering, also after every retry."""

    code = "connection_failed"
    status = 503
    title = "The server cannot be reached"


class UnexpectedAnswer(PenstockError):
    """What answers at the URL is not Penstock, or a proxy before it."""

    code = "unexpected_answer"
    status = 502
    title = "The answer is not one of Penstock's"


class WaitTimedOut(PenstockError):
    """The job had not finished when the time was over. It goes on."""

    code = "wait_timed_out"
    status = 504
    title = "The job has not finished yet"


class WebhookInvalid(PenstockError):
    """The webhook's signature is missing, wrong or too old."""

    code = "webhook_invalid"
    status = 401
    title = "The webhook cannot be trusted"


def error_from(response: httpx.Response) -> PenstockError:
    """The exception that stands for an error response whose body was read."""
    document = _problem_of(response)
    if document is None:
        return _not_from_us(response)
    kind = next((kind for kind in _known_kinds() if kind.code == document["code"]), UnknownProblem)
    error = kind(str(document.get("detail") or document.get("title") or document["code"]))
    error.field = document.get("field")
    error.extra = {name: value for name, value in document.items() if name not in _STANDARD_MEMBERS}
    if kind is UnknownProblem:
        vars(error).update(code=document["code"], status=response.status_code)
    return error


def _not_from_us(response: httpx.Response) -> PenstockError:
    address = response.request.url.copy_with(query=None)
    answered = f"{response.request.method} {address} answered {response.status_code} without a problem document"
    if response.status_code in GATEWAY_STATUSES:
        return ConnectionFailed(f"{answered}: a proxy cannot reach the server behind it")
    return UnexpectedAnswer(f"{answered}; is that the address of a Penstock server?")


def _problem_of(response: httpx.Response) -> dict[str, Any] | None:
    try:
        document = response.json()
    except ValueError:
        return None
    return document if isinstance(document, dict) and isinstance(document.get("code"), str) else None


def _known_kinds() -> Iterator[type[PenstockError]]:
    for value in vars(errors).values():
        if isinstance(value, type) and issubclass(value, PenstockError):
            yield value
