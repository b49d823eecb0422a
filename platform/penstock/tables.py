"""Every table in one place: importing this fills `Base.metadata` for migrations and for tests that compare the two."""

from penstock.auth.models import ApiKey, AuditEntry, Tenant, User
from penstock.batches.models import Batch, BatchLine
from penstock.bulk.models import BulkItem, BulkOperation
from penstock.compressions.models import Compression
from penstock.db import Base
from penstock.dead_letters.models import DeadLetter
from penstock.deployments.models import Placement
from penstock.events.models import FeedEvent, FeedHead
from penstock.fairness.models import FairShare
from penstock.feedback.models import Feedback
from penstock.files.models import File
from penstock.idempotency.models import IdempotencyKey
from penstock.jobs.models import Event, Job, JobJournal, JobRun, JobTag
from penstock.openai_api.response_models import StoredResponse
from penstock.outbox.models import OutboxMessage
from penstock.registry.models import Deployment, Hosting, RoutingPolicy, Worker
from penstock.replay.models import Comparison, Replay
from penstock.rollouts.models import (
    AssignedUnit,
    Assignment,
    ControllerLease,
    Decision,
    GatePoint,
    GateResult,
    OfflineEvaluation,
    Rollout,
    StoredPolicy,
)
from penstock.rollups.models import MetricPoint, MetricProgress
from penstock.usage.models import Price, TenantBudget, UsageDay, UsageEntry
from penstock.webhooks.models import WebhookAttempt, WebhookDelivery, WebhookEndpoint

__all__ = [
    "ApiKey",
    "AssignedUnit",
    "Assignment",
    "AuditEntry",
    "Base",
    "Batch",
    "BatchLine",
    "BulkItem",
    "BulkOperation",
    "Comparison",
    "Compression",
    "ControllerLease",
    "DeadLetter",
    "Decision",
    "Deployment",
    "Event",
    "FairShare",
    "FeedEvent",
    "FeedHead",
    "Feedback",
    "File",
    "GatePoint",
    "GateResult",
    "Hosting",
    "IdempotencyKey",
    "Job",
    "JobJournal",
    "JobRun",
    "JobTag",
    "MetricPoint",
    "MetricProgress",
    "OfflineEvaluation",
    "OutboxMessage",
    "Placement",
    "Price",
    "Replay",
    "Rollout",
    "RoutingPolicy",
    "StoredPolicy",
    "StoredResponse",
    "Tenant",
    "TenantBudget",
    "UsageDay",
    "UsageEntry",
    "User",
    "WebhookAttempt",
    "WebhookDelivery",
    "WebhookEndpoint",
    "Worker",
]
