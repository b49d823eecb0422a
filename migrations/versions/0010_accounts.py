"""What runs took, what jobs cost: measures of runs, prices, budgets.

Revision ID: 0010
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0008"
branch_labels = None
depends_on = None

_MONEY = sa.Numeric(24, 9)


def upgrade() -> None:
    op.add_column("job", sa.Column("terms", postgresql.JSONB(none_as_null=True)))
    op.add_column("job", sa.Column("account", postgresql.JSONB(none_as_null=True)))
    op.add_column("job", sa.Column("api_key_id", sa.Text()))
    for column in _run_columns():
        op.add_column("job_run", column)
    for column in _entry_columns():
        op.add_column("usage_entry", column)
    op.create_check_constraint(
        op.f("ck_usage_entry_cost_with_currency"), "usage_entry", "(cost IS NULL) = (currency IS NULL)"
    )
    op.create_index("ix_usage_entry_time", "usage_entry", ["created_at"])
    _make_prices()
    _make_budgets()


def _run_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("cached_tokens", sa.Integer()),
        sa.Column("computed_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("recomputed_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("device_seconds", sa.Float(), server_default="0", nullable=False),
        sa.Column("recomputed_seconds", sa.Float(), server_default="0", nullable=False),
        sa.Column("joules", sa.Float()),
        sa.Column("energy_note", sa.Text()),
        sa.Column("queue_seconds", sa.Float()),
        sa.Column("prefill_seconds", sa.Float()),
        sa.Column("decode_seconds", sa.Float()),
    ]


def _entry_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("api_key_id", sa.Text()),
        sa.Column("computed_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("recomputed_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("device_seconds", sa.Float(), server_default="0", nullable=False),
        sa.Column("recomputed_seconds", sa.Float(), server_default="0", nullable=False),
        sa.Column("joules", sa.Float()),
        sa.Column("cost", _MONEY),
        sa.Column("currency", sa.Text()),
    ]


def _make_prices() -> None:
    op.create_table(
        "price",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("model_name", sa.Text(), nullable=False),
        sa.Column("model_version", sa.Text(), nullable=True),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("input", _MONEY, nullable=False),
        sa.Column("cached", _MONEY, nullable=False),
        sa.Column("output", _MONEY, nullable=False),
        sa.Column("device_second", _MONEY, nullable=False),
        sa.Column("valid_from", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.CheckConstraint("currency ~ '^[A-Z]{3}$'", name=op.f("ck_price_currency")),
        sa.CheckConstraint("least(input, cached, output, device_second) >= 0", name=op.f("ck_price_not_negative")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_price")),
        sa.UniqueConstraint(
            "model_name",
            "model_version",
            "valid_from",
            name=op.f("uq_price_model_name_model_version_valid_from"),
            postgresql_nulls_not_distinct=True,
        ),
    )


def _make_budgets() -> None:
    op.create_table(
        "tenant_budget",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("amount", _MONEY, nullable=False),
        sa.Column("reserved", _MONEY, server_default="0", nullable=False),
        sa.Column("spent", _MONEY, server_default="0", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("currency ~ '^[A-Z]{3}$'", name=op.f("ck_tenant_budget_currency")),
        sa.CheckConstraint("least(amount, reserved, spent) >= 0", name=op.f("ck_tenant_budget_not_negative")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_tenant_budget_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "currency", name=op.f("pk_tenant_budget")),
    )


def downgrade() -> None:
    op.drop_table("tenant_budget")
    op.drop_table("price")
    op.drop_index("ix_usage_entry_time", "usage_entry")
    op.drop_constraint(op.f("ck_usage_entry_cost_with_currency"), "usage_entry")
    for column in _entry_columns():
        op.drop_column("usage_entry", column.name)
    for column in _run_columns():
        op.drop_column("job_run", column.name)
    for name in ("api_key_id", "account", "terms"):
        op.drop_column("job", name)
