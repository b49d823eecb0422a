"""Budgets: what jobs and tenants may spend. A job's most is reserved when it is submitted, its cost settled at its end.

Takes a session, never commits. Where a transaction locks several tenants' rows it does so in the tenants' order, so
that no two wait for each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final, Protocol

from sqlalchemy import bindparam, exists, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from penstock.errors import BudgetExceeded, ValidationFailed
from penstock.registry.models import Deployment
from penstock.usage.models import Price, TenantBudget
from penstock.usage.prices import IN_FORCE
from penstock.usage.terms import Terms


class Asked(Protocol):
    """A job's own budget; either part may be missing."""

    @property
    def amount(self) -> Decimal | None: ...

    @property
    def currency(self) -> str | None: ...


_BUDGET: Final = TenantBudget.__table__.c
_OFFER: Final = IN_FORCE.add_columns(
    exists().where(_BUDGET.tenant_id == bindparam("tenant_id"), _BUDGET.currency == Price.__table__.c.currency)
)


@dataclass(frozen=True, slots=True)
class Offer:
    """What a version's jobs cost a tenant now; `terms` are None without a price.

    `budgeted` says that the tenant has a budget in their currency.
    """

    terms: Terms | None
    budgeted: bool


def offer(session: Session, tenant_id: str, version: Deployment) -> Offer:
    """What the version costs the tenant now."""
    wanted = {"tenant_id": tenant_id, "model_name": version.model_name, "model_version": version.model_version}
    found = session.execute(_OFFER, wanted).one_or_none()
    return Offer(None, budgeted=False) if found is None else Offer(Terms(*found[:-1]), found[-1])


def agree(
    session: Session,
    tenant_id: str,
    version: Deployment,
    offered: Offer,
    asked: Asked | None,
    *,
    prompt_tokens: int,
    output_tokens: int,
) -> Terms | None:
    """What a job will cost, its most reserved in its tenant's budget where there is one. None without a price.

    `output_tokens` is the most that it may generate. Raises `BudgetExceeded` when the tenant's budget does not hold it,
    `ValidationFailed` when a bound is needed or what was asked for cannot be one.
    """
    terms = offered.terms
    limit = asked.amount if asked is not None else None
    if limit is not None:
        terms = _limited(terms, version, limit, asked.currency if asked is not None else None, prompt_tokens)
    if terms is None or not offered.budgeted:
        return terms
    worst = terms.worst(prompt_tokens=prompt_tokens, output_tokens=output_tokens)
    bounds = [bound for bound in (worst, limit) if bound is not None]
    if not bounds:
        raise ValidationFailed(
            "is needed: the model's price includes the device's time, so that nothing else bounds the cost, and your "
            "tenant has a budget",
            field="budget.amount",
        )
    return replace(terms, reserved=_reserve(session, tenant_id, terms.currency, min(bounds)))


def settle(session: Session, tenant_id: str, terms: Terms, cost: Decimal) -> None:
    """Turn what was reserved for a job into what it cost, once."""
    if terms.reserved is None:
        return
    session.execute(
        update(TenantBudget)
        .where(TenantBudget.tenant_id == tenant_id, TenantBudget.currency == terms.currency)
        .values(reserved=TenantBudget.reserved - terms.reserved, spent=TenantBudget.spent + cost)
    )


def set_budget(session: Session, tenant_id: str, currency: str, amount: Decimal) -> TenantBudget:
    """Let a tenant spend so much in all; what is spent or reserved by now counts."""
    statement = upsert(TenantBudget).values(tenant_id=tenant_id, currency=currency, amount=amount)
    return session.scalars(
        statement.on_conflict_do_update(
            index_elements=[TenantBudget.tenant_id, TenantBudget.currency], set_={"amount": amount}
        )
        .returning(TenantBudget)
        .execution_options(populate_existing=True)
    ).one()


def list_budgets(session: Session, tenant_id: str) -> Sequence[TenantBudget]:
    """The tenant's budgets, by currency."""
    query = select(TenantBudget).where(TenantBudget.tenant_id == tenant_id).order_by(TenantBudget.currency)
    return session.scalars(query).all()


def _limited(
    terms: Terms | None, version: Deployment, limit: Decimal, currency: str | None, prompt_tokens: int
) -> Terms:
    name = f"version {version.model_version} of {version.model_name}"
    if terms is None:
        raise ValidationFailed(f"cannot be: {name} has no price; give budget.tokens", field="budget.amount")
    if currency != terms.currency:
        raise ValidationFailed(f"must be {terms.currency}, in which {name} is priced", field="budget.currency")
    prompt = terms.worst(prompt_tokens=prompt_tokens, output_tokens=0) or Decimal(0)
    if limit <= prompt:
        raise ValidationFailed(f"must be over {prompt:f}, which the prompt alone may cost", field="budget.amount")
    return replace(terms, limit=limit)


def _reserve(session: Session, tenant_id: str, currency: str, most: Decimal) -> Decimal:
    """Hold so much, if that much is left: the row's lock lets one submit after the other look."""
    held = TenantBudget.spent + TenantBudget.reserved
    reserved = session.scalar(
        update(TenantBudget)
        .where(
            TenantBudget.tenant_id == tenant_id,
            TenantBudget.currency == currency,
            held + most <= TenantBudget.amount,
        )
        .values(reserved=TenantBudget.reserved + most)
        .returning(TenantBudget.reserved)
    )
    if reserved is None:
        raise BudgetExceeded(f"the job may cost up to {most:f} {currency}, and your tenant's budget has less left")
    return most
