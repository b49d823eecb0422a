"""Table `outbox_message`."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, func
from sqlalchemy.orm import Mapped, mapped_column

from penstock.db import Base


class OutboxMessage(Base):
    """A message that shares a transaction with the state change it tells of, until a relay has passed it on."""

    __tablename__ = "outbox_message"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    topic: Mapped[str]
    payload: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
