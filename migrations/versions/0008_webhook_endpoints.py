"""Webhook endpoints, replays of deliveries, and the tenants' feed of events.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_ACTORS = "ck_audit_entry_actor_kind"


def upgrade() -> None:
    _make_endpoints()
    _widen_deliveries()
    _make_feed()
    op.drop_constraint(op.f(_ACTORS), "audit_entry")
    op.create_check_constraint(op.f(_ACTORS), "audit_entry", "actor_kind IN ('api_key', 'user', 'command', 'system')")


def _make_endpoints() -> None:
    op.create_table(
        "webhook_endpoint",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("events", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("previous_secret", sa.Text(), nullable=True),
        sa.Column("previous_secret_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failing_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("disabled_reason", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("(failures = 0) = (failing_since IS NULL)", name=op.f("ck_webhook_endpoint_failing_since")),
        sa.CheckConstraint(
            "(disabled_at IS NULL) = (disabled_reason IS NULL)", name=op.f("ck_webhook_endpoint_disabled_reason")
        ),
        sa.CheckConstraint(
            "(previous_secret IS NULL) = (previous_secret_until IS NULL)",
            name=op.f("ck_webhook_endpoint_previous_secret_until"),
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_webhook_endpoint_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_endpoint")),
    )
    op.create_index("ix_webhook_endpoint_tenant_id", "webhook_endpoint", ["tenant_id"])


def _widen_deliveries() -> None:
    op.add_column("webhook_delivery", sa.Column("endpoint_id", sa.Text(), nullable=True))
    op.add_column("webhook_delivery", sa.Column("replayed_after", sa.Integer(), server_default="0", nullable=False))
    op.alter_column("webhook_delivery", "job_id", nullable=True)
    op.alter_column("webhook_delivery", "event_number", nullable=True)
    op.create_foreign_key(
        op.f("fk_webhook_delivery_endpoint_id"),
        "webhook_delivery",
        "webhook_endpoint",
        ["endpoint_id"],
        ["id"],
        ondelete="CASCADE",
    )
    op.create_check_constraint(
        op.f("ck_webhook_delivery_event_of_job"), "webhook_delivery", "(job_id IS NULL) = (event_number IS NULL)"
    )
    newest_first = sa.literal_column("id DESC")
    op.create_index("ix_webhook_delivery_tenant", "webhook_delivery", ["tenant_id", newest_first])
    op.create_index("ix_webhook_delivery_endpoint", "webhook_delivery", ["endpoint_id", newest_first])


def _make_feed() -> None:
    op.create_table(
        "feed_head",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_feed_head_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("pk_feed_head")),
    )
    op.create_table(
        "feed_event",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=True),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=True),
        sa.Column("event_number", sa.Integer(), nullable=True),
        sa.Column("data", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_feed_event_tenant_id")),
        sa.ForeignKeyConstraint(
            ["job_id", "event_number"],
            ["event.job_id", "event.number"],
            name=op.f("fk_feed_event_job_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feed_event")),
        sa.UniqueConstraint("tenant_id", "position", name=op.f("uq_feed_event_tenant_id_position")),
    )
    op.create_index("ix_feed_event_job_id", "feed_event", ["job_id"])
    op.create_index("ix_feed_event_unplaced", "feed_event", ["id"], postgresql_where=sa.text("position IS NULL"))
    op.execute(
        """
        INSERT INTO feed_event (tenant_id, type, job_id, event_number, data, created_at)
        SELECT tenant_id, type, job_id, number, data, created_at FROM event ORDER BY created_at, job_id, number
        """
    )
    op.execute(
        """
        CREATE FUNCTION event_into_feed() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO feed_event (tenant_id, type, job_id, event_number, data, created_at)
            SELECT tenant_id, type, job_id, number, data, created_at FROM written ORDER BY job_id, number;
            RETURN NULL;
        END $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER event_into_feed AFTER INSERT ON event REFERENCING NEW TABLE AS written
        FOR EACH STATEMENT EXECUTE FUNCTION event_into_feed()
        """
    )


def downgrade() -> None:
    op.drop_constraint(op.f(_ACTORS), "audit_entry")
    op.create_check_constraint(
        op.f(_ACTORS), "audit_entry", "actor_kind IN ('api_key', 'user', 'command')", postgresql_not_valid=True
    )  # entries cannot be altered, so those that the system made stay
    op.execute("DROP TRIGGER event_into_feed ON event")
    op.execute("DROP FUNCTION event_into_feed()")
    op.drop_table("feed_event")
    op.drop_table("feed_head")
    op.execute("DELETE FROM webhook_delivery WHERE endpoint_id IS NOT NULL OR job_id IS NULL")
    op.drop_index("ix_webhook_delivery_tenant", "webhook_delivery")
    op.drop_constraint(op.f("ck_webhook_delivery_event_of_job"), "webhook_delivery")
    op.drop_column("webhook_delivery", "endpoint_id")
    op.drop_column("webhook_delivery", "replayed_after")
    op.alter_column("webhook_delivery", "job_id", nullable=False)
    op.alter_column("webhook_delivery", "event_number", nullable=False)
    op.drop_table("webhook_endpoint")
