"""The Python client of Penstock: `from penstock import Client`. Needs httpx and pydantic alone."""

from penstock.client.async_client import AsyncClient
from penstock.client.batches import Batch, BatchLines, BatchResult
from penstock.client.bulk import BulkFailure, BulkOperation
from penstock.client.client import Client
from penstock.client.endpoints import WebhookAttempt, WebhookDelivery, WebhookEndpoint
from penstock.client.errors import (
    ConnectionFailed,
    UnexpectedAnswer,
    UnknownProblem,
    WaitTimedOut,
    WebhookInvalid,
)
from penstock.client.events import Event, StateEvent, TokenEvent
from penstock.client.feed import FeedEvent
from penstock.client.files import File
from penstock.client.house import Model
from penstock.client.inputs import Message, Params, ResponseFormat, Webhook
from penstock.client.job_documents import (
    Alternative,
    Budget,
    CalledFunction,
    Choice,
    Feedback,
    Job,
    JobError,
    Output,
    Queue,
    Run,
    Score,
    TimelineEvent,
    TokenLogprob,
    ToolCall,
    Usage,
)
from penstock.client.keys import ApiKey
from penstock.client.operation import DeadLetter, DeadLetterGroup, Deployment, Placement, Worker
from penstock.client.replays import Replay
from penstock.client.rollouts import Decision, Flip, Judgement, Rollout, RolloutGate, RolloutJob, RolloutPolicy
from penstock.client.usage import Quotas, TenantBudget, UsageRow
from penstock.client.webhooks import WebhookEvent, verify_webhook
from penstock.errors import PenstockError
from penstock.jobs.states import JobState

__all__ = [
    "Alternative",
    "ApiKey",
    "AsyncClient",
    "Batch",
    "BatchLines",
    "BatchResult",
    "Budget",
    "BulkFailure",
    "BulkOperation",
    "CalledFunction",
    "Choice",
    "Client",
    "ConnectionFailed",
    "DeadLetter",
    "DeadLetterGroup",
    "Decision",
    "Deployment",
    "Event",
    "FeedEvent",
    "Feedback",
    "File",
    "Flip",
    "Job",
    "JobError",
    "JobState",
    "Judgement",
    "Message",
    "Model",
    "Output",
    "Params",
    "PenstockError",
    "Placement",
    "Queue",
    "Quotas",
    "Replay",
    "ResponseFormat",
    "Rollout",
    "RolloutGate",
    "RolloutJob",
    "RolloutPolicy",
    "Run",
    "Score",
    "StateEvent",
    "TenantBudget",
    "TimelineEvent",
    "TokenEvent",
    "TokenLogprob",
    "ToolCall",
    "UnexpectedAnswer",
    "UnknownProblem",
    "Usage",
    "UsageRow",
    "WaitTimedOut",
    "Webhook",
    "WebhookAttempt",
    "WebhookDelivery",
    "WebhookEndpoint",
    "WebhookEvent",
    "WebhookInvalid",
    "Worker",
    "verify_webhook",
]
