"""Posting to the outbox. Insertion notifies the relays when the transaction commits (a trigger does it)."""

from enum import StrEnum
from typing import Any

from sqlalchemy import insert
from sqlalchemy.orm import Session

from penstock.outbox.models import OutboxMessage


class Topic(StrEnum):
    """What a message is about: a deployment with waiting jobs, or a webhook delivery that is due."""

    DOORBELL = "doorbell"
    WEBHOOK = "webhook"


def post(session: Session, topic: Topic, payload: dict[str, Any]) -> None:
    """Leave a message that is sent if, and only if, this transaction commits."""
    session.execute(insert(OutboxMessage), {"topic": topic.value, "payload": payload})
