"""Replays, and comparisons of two versions on one job; the feed is told nothing of the system's own jobs.

Revision ID: 0022
Revises: 0021
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_FEED = """
    CREATE OR REPLACE FUNCTION event_into_feed() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO feed_event (tenant_id, type, job_id, event_number, data, created_at)
        SELECT tenant_id, type, job_id, number, data, created_at FROM written {which} ORDER BY job_id, number;
        RETURN NULL;
    END $$
"""


def upgrade() -> None:
    op.create_table(
        "replay",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="gathering", nullable=False),
        *(
            sa.Column(name, sa.Text(), nullable=False)
            for name in ("mode", "model_name", "candidate_id", "reference_id")
        ),
        *(sa.Column(name, JSONB(), nullable=False) for name in ("filter", "actor")),
        sa.Column("gathered_to", sa.Text(), nullable=True),
        *(sa.Column(name, sa.Integer(), server_default="0", nullable=False) for name in ("total", "done", "lost")),
        *(sa.Column(name, _TIME, server_default=sa.text("now()"), nullable=False) for name in ("due_at", "created_at")),
        sa.Column("finished_at", _TIME, nullable=True),
        sa.CheckConstraint("state IN ('gathering', 'running', 'completed', 'cancelled')", name=op.f("ck_replay_state")),
        sa.CheckConstraint("mode IN ('teacher', 'free', 'both')", name=op.f("ck_replay_mode")),
        sa.CheckConstraint("done + lost <= total", name=op.f("ck_replay_no_more_than_all")),
        sa.CheckConstraint(
            "(state IN ('gathering', 'running')) = (finished_at IS NULL)",
            name=op.f("ck_replay_finished_at_when_final"),
        ),
        sa.ForeignKeyConstraint(["candidate_id"], ["deployment.id"], name=op.f("fk_replay_candidate_id")),
        sa.ForeignKeyConstraint(["reference_id"], ["deployment.id"], name=op.f("fk_replay_reference_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_replay")),
    )
    op.create_index(
        "ix_replay_due", "replay", ["due_at"], postgresql_where=sa.text("state IN ('gathering', 'running')")
    )
    _create_comparison()
    op.execute(_FEED.format(which="WHERE tenant_id <> 'ten_system'"))


def _create_comparison() -> None:
    op.create_table(
        "comparison",
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("id", "source_id")),
        *(sa.Column(name, sa.Text(), nullable=True) for name in ("rollout_id", "replay_id")),
        sa.Column("state", sa.Text(), server_default="waiting", nullable=False),
        *(
            sa.Column(name, sa.Text(), nullable=True)
            for name in ("reference_job", "candidate_job", "free_job", "problem")
        ),
        *(sa.Column(name, sa.Float(), nullable=True) for name in ("mean_kld", "disagreement")),
        *(sa.Column(name, JSONB(), nullable=True) for name in ("scored", "free")),
        sa.Column("created_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("settled_at", _TIME, nullable=True),
        sa.CheckConstraint(
            "state IN ('waiting', 'under_way', 'done', 'lost', 'dropped')", name=op.f("ck_comparison_state")
        ),
        sa.CheckConstraint("num_nonnulls(rollout_id, replay_id) = 1", name=op.f("ck_comparison_one_purpose")),
        sa.CheckConstraint("(state = 'lost') = (problem IS NOT NULL)", name=op.f("ck_comparison_lost_with_problem")),
        *(
            sa.ForeignKeyConstraint([column], [f"{table}.id"], name=op.f(f"fk_comparison_{column}"), ondelete="CASCADE")
            for column, table in (("source_id", "job"), ("rollout_id", "rollout"), ("replay_id", "replay"))
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_comparison")),
        *(
            sa.UniqueConstraint(f"{of}_id", "source_id", name=op.f(f"uq_comparison_{of}_source"))
            for of in ("rollout", "replay")
        ),
    )
    op.create_index("ix_comparison_source", "comparison", ["source_id"])
    for of in ("rollout", "replay"):
        op.create_index(
            f"ix_comparison_unsettled_of_{of}",
            "comparison",
            [f"{of}_id", "state", "id"],
            postgresql_where=sa.text("state IN ('waiting', 'under_way')"),
        )
    op.create_index(
        "ix_comparison_dropped",
        "comparison",
        ["id"],
        postgresql_where=sa.text("state = 'dropped' AND num_nonnulls(reference_job, candidate_job, free_job) > 0"),
    )


def downgrade() -> None:
    op.execute(_FEED.format(which=""))
    op.drop_table("comparison")
    op.drop_table("replay")
