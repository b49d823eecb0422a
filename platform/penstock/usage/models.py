"""Tables `usage_entry`, `usage_day`, `price` and `tenant_budget`."""

from datetime import date, datetime
from decimal import Decimal

from sqlalchemy import BigInteger, CheckConstraint, Float, ForeignKey, Index, Numeric, UniqueConstraint, func
from sqlalchemy.orm import Mapped, mapped_column

from penstock.db import Base

MONEY = Numeric(24, 9)


class UsageEntry(Base):
    """What one finished job consumed. One row a job, written in the transaction that finishes it, so never twice.

    `cost` is None where no price was in force when the job was submitted. `device_seconds` are what it is charged for,
    `recomputed_seconds` what the platform spent beyond that: on preemptions, resumptions, and runs that were lost.

    No job can be deleted while it has its entry: first that is added to its day's totals (`usage.days`).
    """

    __tablename__ = "usage_entry"
    __table_args__ = (
        Index("ix_usage_entry_tenant_time", "tenant_id", "created_at"),
        Index("ix_usage_entry_time", "created_at"),
        CheckConstraint("(cost IS NULL) = (currency IS NULL)", name="cost_with_currency"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    model_name: Mapped[str]
    model_version: Mapped[str]
    api_key_id: Mapped[str | None]
    prompt_tokens: Mapped[int]
    cached_tokens: Mapped[int]
    output_tokens: Mapped[int]
    computed_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    recomputed_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    run_milliseconds: Mapped[int]
    device_seconds: Mapped[float] = mapped_column(Float, server_default="0")
    recomputed_seconds: Mapped[float] = mapped_column(Float, server_default="0")
    joules: Mapped[float | None]
    cost: Mapped[Decimal | None] = mapped_column(MONEY)
    currency: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class UsageDay(Base):
    """What the entries that were deleted had counted, a row for each day (UTC) and group of a tenant.

    `digest` stands for the group (version, key, currency and set of tags) in the row's key. `joules` is the sum over
    the jobs that were measured; `cost` is None where they had no price.
    """

    __tablename__ = "usage_day"
    __table_args__ = (CheckConstraint("(cost IS NULL) = (currency IS NULL)", name="cost_with_currency"),)

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    digest: Mapped[bytes] = mapped_column(primary_key=True)
    model_name: Mapped[str]
    model_version: Mapped[str]
    api_key_id: Mapped[str | None]
    tags: Mapped[list[str]]
    currency: Mapped[str | None]
    jobs: Mapped[int] = mapped_column(BigInteger)
    unmeasured_jobs: Mapped[int] = mapped_column(BigInteger)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    cached_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)
    computed_tokens: Mapped[int] = mapped_column(BigInteger)
    recomputed_tokens: Mapped[int] = mapped_column(BigInteger)
    device_seconds: Mapped[float]
    recomputed_seconds: Mapped[float]
    joules: Mapped[float]
    cost: Mapped[Decimal | None] = mapped_column(MONEY)


class Price(Base):
    """What a model version costs from a moment on, until a later price. Never changed: a correction is a new price.

    Without a version it is that of all versions that have none of their own. Token prices are per million.
    """

    __tablename__ = "price"
    __table_args__ = (
        UniqueConstraint("model_name", "model_version", "valid_from", postgresql_nulls_not_distinct=True),
        CheckConstraint("currency ~ '^[A-Z]{3}$'", name="currency"),
        CheckConstraint("least(input, cached, output, device_second) >= 0", name="not_negative"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    model_name: Mapped[str]
    model_version: Mapped[str | None]
    currency: Mapped[str]
    input: Mapped[Decimal] = mapped_column(MONEY)
    cached: Mapped[Decimal] = mapped_column(MONEY)
    output: Mapped[Decimal] = mapped_column(MONEY)
    device_second: Mapped[Decimal] = mapped_column(MONEY)
    valid_from: Mapped[datetime]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    created_by: Mapped[str]


class TenantBudget(Base):
    """What a tenant may spend in one currency. `spent` and `reserved` together never pass `amount` by a new job."""

    __tablename__ = "tenant_budget"
    __table_args__ = (
        CheckConstraint("currency ~ '^[A-Z]{3}$'", name="currency"),
        CheckConstraint("least(amount, reserved, spent) >= 0", name="not_negative"),
    )

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    currency: Mapped[str] = mapped_column(primary_key=True)
    amount: Mapped[Decimal] = mapped_column(MONEY)
    reserved: Mapped[Decimal] = mapped_column(MONEY, server_default="0")
    spent: Mapped[Decimal] = mapped_column(MONEY, server_default="0")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
