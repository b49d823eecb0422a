"""Tables `deployment` (a model version that workers should host), `hosting` (where it is) and `worker`."""

from datetime import datetime
from typing import Any, Final

from sqlalchemy import CheckConstraint, ForeignKey, Text, UniqueConstraint, func
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from penstock.db import Base

LANE_ID: Final = "dep_files"
"""The deployment that jobs wait for which need a model's files alone (`penstock.compressions.lane`)."""


class Deployment(Base):
    """A registered model version that workers host while it is `active` or `draining`.

    `source` is the folder's absolute path and `manifest` maps each of its files to a SHA-256. `digest` is the
    manifest's own SHA-256: a model that is deleted in MLflow and registered anew counts its versions from 1 again,
    and only the digest tells the two apart.
    """

    __tablename__ = "deployment"
    __table_args__ = (
        UniqueConstraint("model_name", "model_version", "digest"),
        CheckConstraint("state IN ('active', 'draining', 'retired')", name="state"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    model_name: Mapped[str]
    model_version: Mapped[str]
    state: Mapped[str] = mapped_column(server_default="active")
    source: Mapped[str]
    manifest: Mapped[dict[str, Any]]
    recipe: Mapped[dict[str, Any]]
    context_length: Mapped[int]
    digest: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    first_ready_at: Mapped[datetime | None]
    keep_warm_until: Mapped[datetime | None]
    """Until when it stays hosted though no alias names it: the version that a promotion took over from."""


class RoutingPolicy(Base):
    """Which deployment a model's jobs go to.

    `champion_id` is None when the model takes no jobs; `reason` says why, or what is going on. `incoming_id` is the
    version that MLflow's alias `champion` names while no live worker has it ready yet.
    """

    __tablename__ = "routing_policy"
    __table_args__ = (
        CheckConstraint("(champion_id IS NULL) = (champion_since IS NULL)", name="champion_since_with_champion"),
    )

    model_name: Mapped[str] = mapped_column(primary_key=True)
    champion_id: Mapped[str | None] = mapped_column(ForeignKey("deployment.id"))
    champion_since: Mapped[datetime | None]
    challenger_id: Mapped[str | None] = mapped_column(ForeignKey("deployment.id"))
    incoming_id: Mapped[str | None] = mapped_column(ForeignKey("deployment.id"))
    reason: Mapped[str]
    alias_to: Mapped[str | None]
    """The version that MLflow's alias `champion` is still to be set to: the route has moved before it."""


class Worker(Base):
    """A worker process. Its heartbeat counts by the database's clock."""

    __tablename__ = "worker"

    id: Mapped[str] = mapped_column(primary_key=True)
    hostname: Mapped[str]
    pid: Mapped[int]
    device: Mapped[str]
    slots: Mapped[int]
    file_jobs: Mapped[int] = mapped_column(server_default="0")
    """How many jobs it does at once that work on models' files."""
    labels: Mapped[list[str]] = mapped_column(ARRAY(Text()), server_default="{}")
    """By which deployments may ask for it, beside its host's name."""
    models: Mapped[list[str] | None] = mapped_column(ARRAY(Text()))
    """Names of the models that it is set up for; null is all."""
    draining: Mapped[bool] = mapped_column(server_default="false")
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    heartbeat_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_claim_at: Mapped[datetime | None]
    drain_requested_at: Mapped[datetime | None]
    """Since when an operator wants it to end; it sees that at its next heartbeat."""


class Hosting(Base):
    """One deployment on one worker, and how far it has come."""

    __tablename__ = "hosting"
    __table_args__ = (CheckConstraint("state IN ('loading', 'ready', 'failed', 'unloading', 'cold')", name="state"),)

    worker_id: Mapped[str] = mapped_column(ForeignKey("worker.id", ondelete="CASCADE"), primary_key=True)
    deployment_id: Mapped[str] = mapped_column(ForeignKey("deployment.id", ondelete="CASCADE"), primary_key=True)
    state: Mapped[str]
    free_slots: Mapped[int] = mapped_column(server_default="0")
    progress: Mapped[float] = mapped_column(server_default="0")
    error: Mapped[str | None]
    stats: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    ready_at: Mapped[datetime | None]
    """Since when it is ready; none while it is not."""
