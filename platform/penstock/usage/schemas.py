"""What the routes of usage, prices and budgets read and answer."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from penstock.clock import aware, iso
from penstock.usage.models import Price, TenantBudget
from penstock.usage.money import Currency, Money
from penstock.usage.prices import NewPrice
from penstock.usage.reports import Grouping, UsageRow, Wanted

Moment = Annotated[datetime, AfterValidator(aware)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _known_groups(text: str) -> str:
    names = text.split(",")
    unknown = [name for name in names if name not in set(Grouping)]
    if unknown or len(set(names)) != len(names):
        raise ValueError(f"it must be one or more of {', '.join(Grouping)}, each once, separated by commas")
    return text


class UsageQuery(_Strict):
    """Which usage, told apart by what, in which form."""

    by: Annotated[str, AfterValidator(_known_groups)] = Field(
        default="day,model", description="One or more of day, model, version, key, tag, tenant, separated by commas"
    )
    since: Moment | None = Field(default=None, description="RFC 3339: jobs that ended then or later")
    until: Moment | None = Field(default=None, description="RFC 3339: jobs that ended before")
    model: str | None = Field(default=None, min_length=1, max_length=200)
    tag: str | None = Field(default=None, min_length=1, max_length=64)
    format: Literal["json", "csv"] = "json"
    after: str | None = Field(default=None, max_length=2000, description="`next` of the page before")
    limit: int = Field(default=100, ge=1, le=1000)

    def wanted(self, tenant_id: str | None) -> Wanted:
        """The question, for one tenant or for all."""
        groups = [Grouping(name) for name in self.by.split(",")]
        return Wanted(groups, tenant_id, self.since, self.until, self.model, self.tag)


class OperatorUsageQuery(UsageQuery):
    """The same over all tenants, or one of them."""

    tenant: str | None = Field(default=None, max_length=100)


class UsageRowDocument(BaseModel):
    """One group's usage."""

    group: dict[str, str] = Field(description="A name for each of `by`; empty for no key and for no tag")
    jobs: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    computed_tokens: int
    recomputed_tokens: int
    device_seconds: float
    recomputed_seconds: float
    joules: float | None = Field(description="Null unless all of the jobs were measured")
    cost: str | None = Field(description="Exact, as text; null where the jobs have no price")
    currency: str | None


class UsagePage(BaseModel):
    """A page of usage, in the order of the groups."""

    object: Literal["list"]
    data: list[UsageRowDocument]
    has_more: bool
    next: str | None = Field(description="Give it as `after` to get the next page")


class PriceRequest(_Strict):
    """A price to set. Those of tokens are per million."""

    model: str = Field(min_length=1, max_length=200)
    version: str | None = Field(
        default=None, min_length=1, max_length=100, description="All versions without a price of their own, if null"
    )
    currency: Currency
    input: Money = Field(description="A million tokens of prompts that are computed")
    cached: Money = Field(description="A million tokens of prompts that are found cached")
    output: Money = Field(description="A million generated tokens")
    device_second: Money = Field(default=Decimal(0), description="A second of the device")
    valid_from: Moment | None = Field(default=None, description="RFC 3339; now, if null")

    def as_new(self) -> NewPrice:
        """The price, as the service takes it."""
        return NewPrice(
            model_name=self.model,
            currency=self.currency,
            input=self.input,
            cached=self.cached,
            output=self.output,
            device_second=self.device_second,
            model_version=self.version,
            valid_from=self.valid_from,
        )


class PriceDocument(BaseModel):
    """A price. Amounts are exact, as text; those of tokens are per million."""

    id: str
    object: Literal["price"]
    model: str
    version: str | None
    currency: str
    input: str
    cached: str
    output: str
    device_second: str
    valid_from: datetime
    created_at: datetime
    created_by: str


class PricePage(BaseModel):
    """A page of prices, last set first."""

    object: Literal["list"]
    data: list[PriceDocument]
    has_more: bool
    next: str | None


class PriceQuery(_Strict):
    """Which prices."""

    model: str | None = Field(default=None, min_length=1, max_length=200)
    after: str | None = Field(default=None, pattern=r"^prc_[0-9a-z]{26}$", description="`next` of the page before")
    limit: int = Field(default=50, ge=1, le=100)


class BudgetRequest(_Strict):
    """What a tenant may spend in one currency, in all."""

    amount: Money
    currency: Currency


class BudgetDocument(BaseModel):
    """A tenant's budget. `reserved` is held for jobs that wait or run; what is left over is open to new ones."""

    object: Literal["budget"]
    currency: str
    amount: str
    spent: str
    reserved: str


class BudgetList(BaseModel):
    """A tenant's budgets, one a currency."""

    object: Literal["list"]
    data: list[BudgetDocument]


def usage_document(row: UsageRow) -> dict[str, Any]:
    """A row as it is answered."""
    return {
        "group": row.group,
        "jobs": row.jobs,
        "prompt_tokens": row.prompt_tokens,
        "cached_tokens": row.cached_tokens,
        "output_tokens": row.output_tokens,
        "computed_tokens": row.computed_tokens,
        "recomputed_tokens": row.recomputed_tokens,
        "device_seconds": round(row.device_seconds, 6),
        "recomputed_seconds": round(row.recomputed_seconds, 6),
        "joules": None if row.joules is None else round(row.joules, 3),
        "cost": None if row.cost is None else f"{row.cost:f}",
        "currency": row.currency,
    }


def price_document(price: Price) -> dict[str, Any]:
    """A price as it is answered."""
    return {
        "id": price.id,
        "object": "price",
        "model": price.model_name,
        "version": price.model_version,
        "currency": price.currency,
        **{name: f"{getattr(price, name):f}" for name in ("input", "cached", "output", "device_second")},
        "valid_from": iso(price.valid_from),
        "created_at": iso(price.created_at),
        "created_by": price.created_by,
    }


def budget_document(budget: TenantBudget) -> dict[str, Any]:
    """A budget as it is answered."""
    amounts = {name: f"{getattr(budget, name):f}" for name in ("amount", "spent", "reserved")}
    return {"object": "budget", "currency": budget.currency} | amounts
