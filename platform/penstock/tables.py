"""Every table in one place: importing this fills `Base.metadata` for migrations and for tests that compare the two."""

from penstock.auth.models import ApiKey, AuditEntry, Tenant, User
from penstock.db import Base
from penstock.events.models import FeedEvent, FeedHead
from penstock.idempotency.models import IdempotencyKey
from penstock.jobs.models import Event, Job, JobJournal, JobRun
from penstock.outbox.models import OutboxMessage
from penstock.registry.models import Deployment, Hosting, RoutingPolicy, Worker
from penstock.usage.models import UsageEntry
from penstock.webhooks.models import WebhookAttempt, WebhookDelivery, WebhookEndpoint

__all__ = [
    "ApiKey",
    "AuditEntry",
    "Base",
    "Deployment",
    "Event",
    "FeedEvent",
    "FeedHead",
    "Hosting",
    "IdempotencyKey",
    "Job",
    "JobJournal",
    "JobRun",
    "OutboxMessage",
    "RoutingPolicy",
    "Tenant",
    "UsageEntry",
    "User",
    "WebhookAttempt",
    "WebhookDelivery",
    "WebhookEndpoint",
    "Worker",
]
