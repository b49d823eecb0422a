"""Tables of the job path: `job`, `job_tag`, `job_run`, `job_journal`, `event`."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, CheckConstraint, ForeignKey, Index, SmallInteger, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from penstock.db import Base, one_of
from penstock.jobs.states import JobClass, JobState, RunOutcome
from penstock.usage.spent import Spent


class Job(Base):
    """Durable work. The row is the truth; every message about it is a doorbell."""

    __tablename__ = "job"
    __table_args__ = (
        CheckConstraint(one_of("state", JobState), name="state"),
        CheckConstraint("job_class BETWEEN 0 AND 2", name="job_class"),
        CheckConstraint("token_budget > 0", name="token_budget"),
        CheckConstraint("(batch_id IS NULL) = (batch_line IS NULL)", name="line_of_batch"),
        CheckConstraint("(state = 'running') = (lease_holder IS NOT NULL)", name="lease_only_while_running"),
        CheckConstraint("(state IN ('queued', 'running')) = (finished_at IS NULL)", name="finished_at_when_final"),
        # The order in which waiting jobs are claimed, tenant by tenant, and the same by how their prompts begin.
        Index(
            "ix_job_waiting",
            "deployment_id",
            "job_class",
            "tenant_id",
            text("priority DESC"),
            "deadline",
            "queued_at",
            "id",
            postgresql_where=text("state = 'queued' AND NOT held"),
        ),
        Index(
            "ix_job_waiting_alike",
            "deployment_id",
            "tenant_id",
            "prefix",
            "job_class",
            "priority",
            "deadline",
            "queued_at",
            "id",
            postgresql_where=text("state = 'queued' AND NOT held"),
        ),
        Index("ix_job_running", "deployment_id", "tenant_id", postgresql_where=text("state = 'running'")),
        Index(
            "ix_job_succeeded",
            "deployment_id",
            text("finished_at DESC"),
            postgresql_where=text("state = 'succeeded'"),
        ),
        Index("ix_job_leased", "lease_holder", "lease_expires_at", postgresql_where=text("state = 'running'")),
        Index("ix_job_deadline", "deadline", postgresql_where=text("state = 'queued' AND deadline IS NOT NULL")),
        Index("ix_job_tenant", "tenant_id", text("id DESC")),
        Index("ix_job_tenant_waiting", "tenant_id", postgresql_where=text("state = 'queued'")),
        # What a list of jobs is filtered by, each newest first (`penstock.jobs.filters`).
        Index("ix_job_tenant_state", "tenant_id", "state", text("id DESC")),
        Index("ix_job_tenant_deployment", "tenant_id", "deployment_id", "state", text("id DESC")),
        Index("ix_job_key", "api_key_id", text("id DESC"), postgresql_where=text("api_key_id IS NOT NULL")),
        Index(
            "ix_job_error",
            "tenant_id",
            text("(error ->> 'code')"),
            text("id DESC"),
            postgresql_where=text("error IS NOT NULL"),
        ),
        Index("ix_job_tenant_finished", "tenant_id", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
        Index("ix_job_batch", "batch_id", text("id DESC"), postgresql_where=text("batch_id IS NOT NULL")),
        # Deleting a job looks for those that name it.
        Index("ix_job_retry_of", "retry_of", postgresql_where=text("retry_of IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    kind: Mapped[str] = mapped_column(server_default="generate")
    state: Mapped[str] = mapped_column(server_default=JobState.QUEUED.value)

    # What was asked
    model: Mapped[str]
    input: Mapped[dict[str, Any]]
    params: Mapped[dict[str, Any]] = mapped_column(JSON)  # not jsonb: a schema's properties keep their order
    seed: Mapped[int] = mapped_column(BigInteger)
    tags: Mapped[list[str]] = mapped_column(server_default="{}")
    user_metadata: Mapped[dict[str, Any]] = mapped_column("metadata", server_default="{}")
    webhook: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    retry_of: Mapped[str | None] = mapped_column(ForeignKey("job.id", ondelete="SET NULL"))
    batch_id: Mapped[str | None]
    batch_line: Mapped[int | None]

    # When and before whom
    job_class: Mapped[int] = mapped_column(SmallInteger, server_default=str(JobClass.INTERACTIVE.value))
    priority: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    deadline: Mapped[datetime | None]
    held: Mapped[bool] = mapped_column(server_default="false")
    """Not to be claimed while it waits: its batch is paused."""
    prefix: Mapped[int | None] = mapped_column(BigInteger)
    """How its prompt begins (`penstock.fairness.prefixes`)."""
    charged: Mapped[int] = mapped_column(BigInteger, server_default="0")
    """What its tenant was charged for it so far (`penstock.fairness.counters`), the tenant's weight aside."""
    token_budget: Mapped[int | None] = mapped_column(BigInteger)
    """What it may cost: prompt and output of all choices together."""
    terms: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    """The price at submission, and what the job may cost by it (`usage.terms`)."""
    api_key_id: Mapped[str | None]
    """With which key it was submitted; none from the portal."""

    # Which version serves it, and why
    deployment_id: Mapped[str] = mapped_column(ForeignKey("deployment.id"))
    model_name: Mapped[str]
    model_version: Mapped[str]
    routing: Mapped[dict[str, Any]]

    # The lease: only the holder with the current fence writes
    fence: Mapped[int] = mapped_column(BigInteger, server_default="0")
    lease_holder: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]
    void_to: Mapped[int] = mapped_column(BigInteger, server_default="0")
    """What runs up to this fence generated is void: it was begun anew, on another version."""
    runs: Mapped[int] = mapped_column(server_default="0")
    own_crashes: Mapped[int] = mapped_column(server_default="0")
    last_event: Mapped[int] = mapped_column(server_default="0")

    # Times by the database's clock
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    queued_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    first_token_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    # What came of it
    prompt_tokens: Mapped[int | None]
    cached_tokens: Mapped[int] = mapped_column(server_default="0")
    output_tokens: Mapped[int] = mapped_column(server_default="0")
    output: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    error: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    account: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    """What it consumed beside these tokens, and its cost (`usage.accounting`)."""
    traceparent: Mapped[str | None]


class JobTag(Base):
    """A tag of a job. A trigger on `job` writes them, so that the newest jobs with a tag lie side by side."""

    __tablename__ = "job_tag"
    __table_args__ = (Index("ix_job_tag_job_id", "job_id"),)

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    tag: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), primary_key=True)


class JobRun(Base):
    """One lease-holding execution of a job."""

    __tablename__ = "job_run"
    __table_args__ = (
        CheckConstraint(f"outcome IS NULL OR {one_of('outcome', RunOutcome)}", name="outcome"),
        CheckConstraint("(outcome IS NULL) = (ended_at IS NULL)", name="ended_with_outcome"),
        Index("ix_job_run_crashed", "ended_at", postgresql_where=text("outcome = 'crashed_alone'")),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), primary_key=True)
    fence: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    worker_id: Mapped[str]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    resumed_at_position: Mapped[int] = mapped_column(server_default="0")
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None]
    reason: Mapped[str | None]

    # What it took, as its worker last told; the meanings are those of `Spent`
    cached_tokens: Mapped[int | None]
    computed_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    recomputed_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    device_seconds: Mapped[float] = mapped_column(server_default="0")
    recomputed_seconds: Mapped[float] = mapped_column(server_default="0")
    joules: Mapped[float | None]
    energy_note: Mapped[str | None]
    queue_seconds: Mapped[float | None]
    prefill_seconds: Mapped[float | None]
    decode_seconds: Mapped[float | None]

    @property
    def spent(self) -> Spent:
        """What it took."""
        return Spent(**{name: getattr(self, name) for name in Spent.__slots__})


class JobJournal(Base):
    """A job's tokens as PostgreSQL keeps them: a checkpoint while it runs, the whole journal once it has finished."""

    __tablename__ = "job_journal"

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), primary_key=True)
    fence: Mapped[int] = mapped_column(BigInteger)
    length: Mapped[int]
    entries: Mapped[bytes]
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Event(Base):
    """What happened to a job, in one sequence per job, whichever door it leaves by."""

    __tablename__ = "event"

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    type: Mapped[str]
    data: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
