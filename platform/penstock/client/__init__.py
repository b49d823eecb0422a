"""The Python client of Penstock: `from penstock import Client`. Needs httpx and pydantic alone."""

from penstock.client.client import Client
from penstock.client.errors import (
    ConnectionFailed,
    UnexpectedAnswer,
    UnknownProblem,
    WaitTimedOut,
    WebhookInvalid,
)
from penstock.client.events import Event, StateEvent, TokenEvent
from penstock.client.models import (
    Choice,
    Job,
    JobError,
    Message,
    Model,
    Output,
    Params,
    Queue,
    Run,
    TimelineEvent,
    Usage,
    Webhook,
)
from penstock.client.webhooks import WebhookEvent, verify_webhook
from penstock.errors import PenstockError
from penstock.jobs.states import JobState

__all__ = [
    "Choice",
    "Client",
    "ConnectionFailed",
    "Event",
    "Job",
    "JobError",
    "JobState",
    "Message",
    "Model",
    "Output",
    "Params",
    "PenstockError",
    "Queue",
    "Run",
    "StateEvent",
    "TimelineEvent",
    "TokenEvent",
    "UnexpectedAnswer",
    "UnknownProblem",
    "Usage",
    "WaitTimedOut",
    "Webhook",
    "WebhookEvent",
    "WebhookInvalid",
    "verify_webhook",
]
