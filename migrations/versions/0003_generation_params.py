"""What a job may cost in tokens, how large a tenant's share of a worker is, and parameters that keep their order.

The order of a JSON schema's properties is the order in which an output has them; `jsonb` forgets it.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.alter_column("job", "params", type_=sa.JSON(), postgresql_using="params::json")
    op.add_column("job", sa.Column("token_budget", sa.BigInteger()))
    op.create_check_constraint(op.f("ck_job_token_budget"), "job", "token_budget > 0")
    op.add_column("tenant", sa.Column("weight", sa.Float(), server_default="1", nullable=False))
    op.create_check_constraint(op.f("ck_tenant_weight"), "tenant", "weight > 0 AND weight < 'Infinity'")


def downgrade() -> None:
    op.drop_constraint(op.f("ck_tenant_weight"), "tenant", type_="check")
    op.drop_column("tenant", "weight")
    op.drop_constraint(op.f("ck_job_token_budget"), "job", type_="check")
    op.drop_column("job", "token_budget")
    op.alter_column("job", "params", type_=postgresql.JSONB(), postgresql_using="params::jsonb")
