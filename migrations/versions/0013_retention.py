"""How long tenants keep what they have, daily totals of usage, and tenants that are suspended or being erased.

Revision ID: 0013
Revises: 0009
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0013"
down_revision = "0009"
branch_labels = None
depends_on = None

_DAYS = tuple(f"retain_{what}_days" for what in ("jobs", "events", "deliveries", "files", "usage"))
_MOMENTS = ("suspended_at", "erasing_since")
_SUMS = ("jobs", "unmeasured_jobs", "prompt_tokens", "cached_tokens", "output_tokens", "computed_tokens")


def upgrade() -> None:
    for name in _DAYS:
        op.add_column("tenant", sa.Column(name, sa.Integer(), nullable=True))
    for name in _MOMENTS:
        op.add_column("tenant", sa.Column(name, sa.DateTime(timezone=True), nullable=True))
    op.create_check_constraint(op.f("ck_tenant_retention"), "tenant", f"least({', '.join(_DAYS)}) > 0")
    op.create_check_constraint(
        op.f("ck_tenant_erased_when_suspended"), "tenant", "erasing_since IS NULL OR suspended_at IS NOT NULL"
    )
    _make_totals()
    _refer_usage_to_jobs(ondelete=None)
    op.drop_constraint(op.f("fk_audit_entry_tenant_id"), "audit_entry")
    op.create_index("ix_job_retry_of", "job", ["retry_of"], postgresql_where=sa.text("retry_of IS NOT NULL"))


def _make_totals() -> None:
    op.create_table(
        "usage_day",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("model_name", sa.Text(), nullable=False),
        sa.Column("model_version", sa.Text(), nullable=False),
        sa.Column("api_key_id", sa.Text(), nullable=True),
        sa.Column("tags", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("currency", sa.Text(), nullable=True),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in (*_SUMS, "recomputed_tokens")),
        *(sa.Column(name, sa.Float(), nullable=False) for name in ("device_seconds", "recomputed_seconds", "joules")),
        sa.Column("cost", sa.Numeric(24, 9), nullable=True),
        sa.CheckConstraint("(cost IS NULL) = (currency IS NULL)", name=op.f("ck_usage_day_cost_with_currency")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_usage_day_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "day", "digest", name=op.f("pk_usage_day")),
    )


def _refer_usage_to_jobs(ondelete: str | None) -> None:
    name = op.f("fk_usage_entry_job_id")
    op.drop_constraint(name, "usage_entry")
    op.create_foreign_key(name, "usage_entry", "job", ["job_id"], ["id"], ondelete=ondelete)


def downgrade() -> None:
    op.drop_index("ix_job_retry_of", "job")
    op.execute("DELETE FROM audit_entry WHERE tenant_id NOT IN (SELECT id FROM tenant)")
    op.create_foreign_key(op.f("fk_audit_entry_tenant_id"), "audit_entry", "tenant", ["tenant_id"], ["id"])
    _refer_usage_to_jobs(ondelete="CASCADE")
    op.drop_table("usage_day")
    op.drop_constraint(op.f("ck_tenant_erased_when_suspended"), "tenant")
    op.drop_constraint(op.f("ck_tenant_retention"), "tenant")
    for name in (*_MOMENTS, *_DAYS):
        op.drop_column("tenant", name)
