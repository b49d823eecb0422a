"""Files, batches and their lines; a batch's jobs name it, and can be held while it is paused.

Revision ID: 0011
Revises: 0012
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0011"
down_revision = "0012"
branch_labels = None
depends_on = None

_NEWEST_FIRST = sa.literal_column("id DESC")


def upgrade() -> None:
    _make_files()
    _make_batches()
    _make_lines()
    _widen_jobs()


def _make_files() -> None:
    op.create_table(
        "file",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="uploading", nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("content_type", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=True),
        sa.Column("sha256", sa.Text(), nullable=True),
        _moment("created_at", now=True),
        _moment("touched_at", now=True),
        _moment("expires_at"),
        sa.CheckConstraint("state IN ('uploading', 'ready', 'deleting')", name=op.f("ck_file_state")),
        sa.CheckConstraint(
            "state <> 'ready' OR (bytes IS NOT NULL AND sha256 IS NOT NULL)", name=op.f("ck_file_ready_when_known")
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_file_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_file")),
    )
    op.create_index("ix_file_tenant", "file", ["tenant_id", _NEWEST_FIRST], postgresql_where=sa.text("state = 'ready'"))
    op.create_index("ix_file_unfinished", "file", ["touched_at"], postgresql_where=sa.text("state <> 'ready'"))
    op.create_index("ix_file_expiry", "file", ["expires_at"], postgresql_where=sa.text("expires_at IS NOT NULL"))


def _make_batches() -> None:
    op.create_table(
        "batch",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="validating", nullable=False),
        sa.Column("input_file_id", sa.Text(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("completion_window", sa.Text(), nullable=False),
        sa.Column("invalid_lines", sa.Text(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("metadata", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("allowed_models", postgresql.ARRAY(sa.Text()), nullable=True),
        sa.Column("api_key_id", sa.Text(), nullable=True),
        sa.Column("output_expires_seconds", sa.Integer(), nullable=True),
        sa.Column("retry_of", sa.Text(), nullable=True),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=True),
        sa.Column("ends_as", sa.Text(), nullable=True),
        sa.Column("blocker", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        _count("fence", sa.BigInteger()),
        _moment("taken_until"),
        _moment("due_at", now=True),
        _count("read_lines"),
        _count("read_bytes", sa.BigInteger()),
        _count("error_count"),
        sa.Column("errors", postgresql.JSONB(astext_type=sa.Text()), server_default="[]", nullable=False),
        *(_count(name) for name in ("total_lines", "settled", "succeeded_lines", "failed_lines")),
        *(_count(name) for name in ("cancelled_lines", "expired_lines", "invalid_lines_found")),
        *(_count(name, sa.BigInteger()) for name in ("prompt_tokens", "cached_tokens", "output_tokens")),
        sa.Column("output_file_id", sa.Text(), nullable=True),
        sa.Column("error_file_id", sa.Text(), nullable=True),
        _moment("created_at", now=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        *(_moment(name) for name in ("in_progress_at", "paused_at", "resumed_at", "finalizing_at")),
        *(_moment(name) for name in ("cancelling_at", "finished_at")),
        sa.CheckConstraint(
            "state IN ('validating', 'in_progress', 'finalizing', 'cancelling', 'completed', 'failed', 'expired', 'cancelled')",
            name=op.f("ck_batch_state"),
        ),
        sa.CheckConstraint("invalid_lines IN ('refuse', 'skip')", name=op.f("ck_batch_invalid_lines")),
        sa.CheckConstraint("ends_as IN ('completed', 'expired')", name=op.f("ck_batch_ends_as")),
        sa.CheckConstraint(
            "settled = succeeded_lines + failed_lines + cancelled_lines + expired_lines + invalid_lines_found",
            name=op.f("ck_batch_settled_is_the_sum"),
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_batch_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batch")),
        sa.UniqueConstraint("tenant_id", "idempotency_key", name=op.f("uq_batch_tenant_id_idempotency_key")),
    )
    op.create_index("ix_batch_tenant", "batch", ["tenant_id", _NEWEST_FIRST])
    op.create_index("ix_batch_input_file", "batch", ["input_file_id"])
    op.create_index(
        "ix_batch_due",
        "batch",
        ["due_at"],
        postgresql_where=sa.text("state IN ('validating', 'in_progress', 'finalizing', 'cancelling')"),
    )


def _make_lines() -> None:
    op.create_table(
        "batch_line",
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column("line", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("state", sa.Text(), server_default="ready", nullable=False),
        sa.Column("custom_id", sa.Text(), nullable=True),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("length", sa.Integer(), nullable=False),
        sa.Column("echo", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("job_id", sa.Text(), nullable=True),
        sa.Column("position", sa.Integer(), nullable=True),
        sa.Column("error", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        _moment("settled_at"),
        sa.CheckConstraint(
            "state IN ('ready', 'open', 'succeeded', 'failed', 'cancelled', 'expired', 'invalid')",
            name=op.f("ck_batch_line_state"),
        ),
        sa.CheckConstraint(
            "(state IN ('ready', 'open')) = (position IS NULL)", name=op.f("ck_batch_line_position_when_settled")
        ),
        sa.CheckConstraint("state <> 'open' OR job_id IS NOT NULL", name=op.f("ck_batch_line_open_with_job")),
        sa.ForeignKeyConstraint(["batch_id"], ["batch.id"], name=op.f("fk_batch_line_batch_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("batch_id", "line", name=op.f("pk_batch_line")),
        sa.UniqueConstraint("batch_id", "position", name=op.f("uq_batch_line_batch_id_position")),
    )
    op.create_index(
        "uq_batch_line_custom_id",
        "batch_line",
        ["batch_id", "custom_id"],
        unique=True,
        postgresql_where=sa.text("state <> 'invalid'"),
    )
    op.create_index(
        "ix_batch_line_ready", "batch_line", ["batch_id", "line"], postgresql_where=sa.text("state = 'ready'")
    )
    op.create_index(
        "ix_batch_line_open", "batch_line", ["batch_id", "job_id"], postgresql_where=sa.text("state = 'open'")
    )


def _widen_jobs() -> None:
    op.add_column("job", sa.Column("batch_id", sa.Text(), nullable=True))
    op.add_column("job", sa.Column("batch_line", sa.Integer(), nullable=True))
    op.add_column("job", sa.Column("held", sa.Boolean(), server_default="false", nullable=False))
    op.create_check_constraint(op.f("ck_job_line_of_batch"), "job", "(batch_id IS NULL) = (batch_line IS NULL)")
    op.create_index(
        "ix_job_batch", "job", ["batch_id", _NEWEST_FIRST], postgresql_where=sa.text("batch_id IS NOT NULL")
    )


def downgrade() -> None:
    op.drop_index("ix_job_batch", "job")
    op.drop_constraint(op.f("ck_job_line_of_batch"), "job")
    for column in ("held", "batch_line", "batch_id"):
        op.drop_column("job", column)
    for table in ("batch_line", "batch", "file"):
        op.drop_table(table)


def _count(name: str, kind: sa.types.TypeEngine[int] | None = None) -> sa.Column[int]:
    return sa.Column(name, kind or sa.Integer(), server_default="0", nullable=False)


def _moment(name: str, *, now: bool = False) -> sa.Column[object]:
    default = sa.text("now()") if now else None
    return sa.Column(name, sa.DateTime(timezone=True), server_default=default, nullable=not now)
