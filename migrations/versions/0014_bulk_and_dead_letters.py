"""Bulk operations, dead letters, workers that are asked to drain, and indexes for every filter of a list of jobs.

Revision ID: 0014
Revises: 0013
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_NEWEST_FIRST = sa.literal_column("id DESC")
_DEADLY = "('engine_crashed', 'forward_failed', 'out_of_memory', 'logits_not_finite', 'internal_error')"


def upgrade() -> None:
    _index_jobs()
    _keep_tags()
    _make_operations()
    _make_dead_letters()
    op.add_column("worker", _moment("drain_requested_at"))


def _index_jobs() -> None:
    op.create_index("ix_job_tenant_state", "job", ["tenant_id", "state", _NEWEST_FIRST])
    op.create_index("ix_job_tenant_deployment", "job", ["tenant_id", "deployment_id", "state", _NEWEST_FIRST])
    by_key = sa.text("api_key_id IS NOT NULL")
    op.create_index("ix_job_key", "job", ["api_key_id", _NEWEST_FIRST], postgresql_where=by_key)
    by_code = ["tenant_id", sa.literal_column("(error ->> 'code')"), _NEWEST_FIRST]
    op.create_index("ix_job_error", "job", by_code, postgresql_where=sa.text("error IS NOT NULL"))
    ended = sa.text("finished_at IS NOT NULL")
    op.create_index("ix_job_tenant_finished", "job", ["tenant_id", "finished_at"], postgresql_where=ended)


def _keep_tags() -> None:
    op.create_table(
        "job_tag",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("tag", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_job_tag_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant_id", "tag", "job_id", name=op.f("pk_job_tag")),
    )
    op.create_index("ix_job_tag_job_id", "job_tag", ["job_id"])
    op.execute("INSERT INTO job_tag SELECT DISTINCT tenant_id, unnest(tags), id FROM job WHERE cardinality(tags) > 0")
    op.execute(
        """
        CREATE FUNCTION job_keep_tags() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF TG_OP = 'UPDATE' THEN
                DELETE FROM job_tag WHERE job_id = NEW.id;
            END IF;
            INSERT INTO job_tag SELECT DISTINCT NEW.tenant_id, unnest(NEW.tags), NEW.id;
            RETURN NULL;
        END $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER job_tags_written AFTER INSERT ON job
        FOR EACH ROW WHEN (cardinality(NEW.tags) > 0) EXECUTE FUNCTION job_keep_tags()
        """
    )
    op.execute(
        """
        CREATE TRIGGER job_tags_changed AFTER UPDATE OF tags ON job
        FOR EACH ROW WHEN (OLD.tags IS DISTINCT FROM NEW.tags) EXECUTE FUNCTION job_keep_tags()
        """
    )
    op.drop_index("ix_job_tags", "job")


def _make_operations() -> None:
    op.create_table(
        "bulk_operation",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="gathering", nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("filter", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("actor", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("api_key_id", sa.Text(), nullable=True),
        sa.Column("allowed_models", postgresql.ARRAY(sa.Text()), nullable=True),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=True),
        sa.Column("gathered_to", sa.Text(), nullable=True),
        sa.Column("truncated", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("blocker", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        *(
            sa.Column(name, sa.Integer(), server_default="0", nullable=False)
            for name in ("total", "done", "skipped", "failed")
        ),
        _moment("due_at", now=True),
        _moment("created_at", now=True),
        _moment("finished_at"),
        sa.CheckConstraint(
            "state IN ('gathering', 'running', 'completed', 'cancelled')", name=op.f("ck_bulk_operation_state")
        ),
        sa.CheckConstraint(
            "action IN ('cancel', 'replay', 'replay_dead_letters', 'discard_dead_letters')",
            name=op.f("ck_bulk_operation_action"),
        ),
        sa.CheckConstraint("done + skipped + failed <= total", name=op.f("ck_bulk_operation_no_more_than_all")),
        sa.CheckConstraint(
            "(state IN ('gathering', 'running')) = (finished_at IS NULL)",
            name=op.f("ck_bulk_operation_finished_at_when_final"),
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_bulk_operation_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bulk_operation")),
        sa.UniqueConstraint("tenant_id", "idempotency_key", name=op.f("uq_bulk_operation_tenant_id_idempotency_key")),
    )
    op.create_index("ix_bulk_operation_tenant", "bulk_operation", ["tenant_id", _NEWEST_FIRST])
    unfinished = sa.text("state IN ('gathering', 'running')")
    op.create_index("ix_bulk_operation_due", "bulk_operation", ["due_at"], postgresql_where=unfinished)
    op.create_table(
        "bulk_item",
        sa.Column("operation_id", sa.Text(), nullable=False),
        sa.Column("target_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="ready", nullable=False),
        sa.Column("result_id", sa.Text(), nullable=True),
        sa.Column("error", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.CheckConstraint("state IN ('ready', 'done', 'skipped', 'failed')", name=op.f("ck_bulk_item_state")),
        sa.CheckConstraint("state <> 'failed' OR error IS NOT NULL", name=op.f("ck_bulk_item_failed_with_error")),
        sa.ForeignKeyConstraint(
            ["operation_id"], ["bulk_operation.id"], name=op.f("fk_bulk_item_operation_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("operation_id", "target_id", name=op.f("pk_bulk_item")),
    )
    for state in ("ready", "failed"):
        chosen = sa.text(f"state = '{state}'")
        op.create_index(f"ix_bulk_item_{state}", "bulk_item", ["operation_id", "target_id"], postgresql_where=chosen)


def _make_dead_letters() -> None:
    op.create_table(
        "dead_letter",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("model_name", sa.Text(), nullable=False),
        sa.Column("model_version", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="open", nullable=False),
        sa.Column("replay_job_id", sa.Text(), nullable=True),
        _moment("created_at", now=True),
        _moment("settled_at"),
        sa.Column("settled_by", sa.Text(), nullable=True),
        sa.CheckConstraint("state IN ('open', 'replayed', 'discarded')", name=op.f("ck_dead_letter_state")),
        sa.CheckConstraint(
            "(state = 'open') = (settled_at IS NULL)", name=op.f("ck_dead_letter_settled_at_when_settled")
        ),
        sa.CheckConstraint(
            "(state = 'replayed') = (replay_job_id IS NOT NULL)", name=op.f("ck_dead_letter_job_when_replayed")
        ),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_dead_letter_job_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_dead_letter_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dead_letter")),
        sa.UniqueConstraint("job_id", name=op.f("uq_dead_letter_job_id")),
    )
    group = ["state", "reason", "model_name", "model_version", _NEWEST_FIRST]
    op.create_index("ix_dead_letter_group", "dead_letter", group)
    op.execute(
        f"""
        INSERT INTO dead_letter (id, tenant_id, job_id, reason, message, model_name, model_version, created_at)
        SELECT 'dlt' || substr(id, 4), tenant_id, id, error ->> 'code', coalesce(error ->> 'message', ''),
               model_name, model_version, finished_at
        FROM job WHERE state = 'failed' AND error ->> 'code' IN {_DEADLY}
        """  # noqa: S608 - made of a constant
    )


def downgrade() -> None:
    op.drop_column("worker", "drain_requested_at")
    for table in ("dead_letter", "bulk_item", "bulk_operation"):
        op.drop_table(table)
    op.create_index("ix_job_tags", "job", ["tags"], postgresql_using="gin")
    op.execute("DROP TRIGGER job_tags_changed ON job")
    op.execute("DROP TRIGGER job_tags_written ON job")
    op.execute("DROP FUNCTION job_keep_tags()")
    op.drop_table("job_tag")
    for name in ("tenant_finished", "error", "key", "tenant_deployment", "tenant_state"):
        op.drop_index(f"ix_job_{name}", "job")


def _moment(name: str, *, now: bool = False) -> sa.Column[object]:
    default = sa.text("now()") if now else None
    return sa.Column(name, sa.DateTime(timezone=True), server_default=default, nullable=not now)
