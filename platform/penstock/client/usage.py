"""What a tenant has used and may use, as the server answers it."""

from decimal import Decimal

from penstock.client.documents import Document


class UsageRow(Document):
    """What the finished jobs of one `group` used and cost; `cost` is None where they have no price."""

    group: dict[str, str]
    jobs: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    computed_tokens: int
    recomputed_tokens: int
    device_seconds: float
    recomputed_seconds: float
    joules: float | None
    cost: Decimal | None
    currency: str | None


class UsagePage(Document):
    """One page of usage."""

    data: list[UsageRow]
    has_more: bool
    next: str | None


class TenantBudget(Document):
    """What the tenant may spend of a currency in all, has spent, and has reserved for jobs that wait or run."""

    currency: str
    amount: Decimal
    spent: Decimal
    reserved: Decimal


class BudgetList(Document):
    """All of them."""

    data: list[TenantBudget]


class Rate(Document):
    """What may be used in a minute; a `limit` of None is none."""

    limit: int | None
    remaining: int | None
    reset_seconds: int | None


class QueuedJobs(Document):
    """Jobs that may wait at once, and do."""

    limit: int
    waiting: int


class OpenStreams(Document):
    """Streams that may be open at once."""

    limit: int | None


class Quotas(Document):
    """The tenant's limits in force, and how they stand."""

    requests_per_minute: Rate
    tokens_per_minute: Rate
    queued_jobs: QueuedJobs
    open_streams: OpenStreams
