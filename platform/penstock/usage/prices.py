"""Prices: set by operators, in force from a moment on. Takes a session, never commits."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final

from sqlalchemy import bindparam, func, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from penstock.errors import AlreadyExists
from penstock.ids import new_id
from penstock.usage.models import Price


@dataclass(frozen=True, slots=True)
class NewPrice:
    """A price to set. `valid_from` None is now, `model_version` None every version without a price of its own."""

    model_name: str
    currency: str
    input: Decimal
    cached: Decimal
    output: Decimal
    device_second: Decimal = Decimal(0)
    model_version: str | None = None
    valid_from: datetime | None = None


def set_price(session: Session, new: NewPrice, *, created_by: str) -> Price:
    """Add a price. Raises `AlreadyExists` when the model has one from the same moment on."""
    price = Price(
        id=new_id("prc"),
        model_name=new.model_name,
        model_version=new.model_version,
        currency=new.currency,
        input=new.input,
        cached=new.cached,
        output=new.output,
        device_second=new.device_second,
        valid_from=new.valid_from or session.scalars(select(func.clock_timestamp())).one(),
        created_by=created_by,
    )
    try:
        with session.begin_nested():
            session.add(price)
    except IntegrityError:
        raise AlreadyExists("the model has a price from that moment on already", field="valid_from") from None
    session.refresh(price)
    return price


def list_prices(
    session: Session, *, model_name: str | None = None, limit: int = 100, before: str | None = None
) -> tuple[Sequence[Price], str | None]:
    """A page of prices, last set first, and the cursor of the next page if there is one."""
    query = select(Price)
    if model_name is not None:
        query = query.where(Price.model_name == model_name)
    if before is not None:
        query = query.where(Price.id < before)
    found = session.scalars(query.order_by(Price.id.desc()).limit(limit + 1)).all()
    return found[:limit], found[limit - 1].id if len(found) > limit else None


_PRICE: Final = Price.__table__.c
IN_FORCE: Final = (
    select(_PRICE.id, _PRICE.currency, _PRICE.input, _PRICE.cached, _PRICE.output, _PRICE.device_second)
    .where(
        _PRICE.model_name == bindparam("model_name"),
        or_(_PRICE.model_version == bindparam("model_version"), _PRICE.model_version.is_(None)),
        _PRICE.valid_from <= func.now(),
    )
    .order_by(_PRICE.model_version.nulls_last(), _PRICE.valid_from.desc())
    .limit(1)
)
"""The terms of a job of the version that is submitted now; no row where it has no price."""
