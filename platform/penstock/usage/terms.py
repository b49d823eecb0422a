"""What a job costs: the price that was in force when it was submitted, kept with the job, and its bounds."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, Final, Self

MILLION: Final = 1_000_000
SMALLEST: Final = Decimal("0.000000001")


@dataclass(frozen=True, slots=True)
class Terms:
    """A copy of the price, so that a later price changes nothing for the job. Token prices are per million.

    `limit` is the job's own budget. `reserved` is what is held for it in its tenant's budget; no job costs more than
    either.
    """

    price_id: str
    currency: str
    input: Decimal
    cached: Decimal
    output: Decimal
    device_second: Decimal
    limit: Decimal | None = None
    reserved: Decimal | None = None

    @property
    def rates(self) -> tuple[str, Decimal, Decimal, Decimal, Decimal]:
        """The currency, and what is paid for each thing."""
        return self.currency, self.input, self.cached, self.output, self.device_second

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """The terms as the job's row has them."""
        amounts = {
            name: None if document[name] is None else Decimal(document[name])
            for name in cls.__slots__
            if name not in ("price_id", "currency")
        }
        return cls(price_id=document["price_id"], currency=document["currency"], **amounts)  # type: ignore[arg-type]  # the price's own amounts are never None

    @property
    def document(self) -> dict[str, Any]:
        """The terms as the job's row keeps them; amounts are text, so that none loses a digit."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {name: str(value) if isinstance(value, Decimal) else value for name, value in values.items()}

    @property
    def most(self) -> Decimal | None:
        """What the job can cost at most; None without a bound."""
        bounds = [bound for bound in (self.limit, self.reserved) if bound is not None]
        return min(bounds, default=None)

    def cost(self, *, prompt_tokens: int, cached_tokens: int, output_tokens: int, device_seconds: float) -> Decimal:
        """The cost of what was consumed, to nine decimal places, within the bounds."""
        tokens = (
            (prompt_tokens - cached_tokens) * self.input + cached_tokens * self.cached + output_tokens * self.output
        ) / MILLION
        cost = tokens + Decimal(device_seconds) * self.device_second
        exact = max(cost, Decimal(0)).quantize(SMALLEST, ROUND_HALF_EVEN)
        return exact if self.most is None else min(exact, self.most)

    def worst(self, *, prompt_tokens: int, output_tokens: int) -> Decimal | None:
        """What tokens can cost at most; None where the device's time costs too, which nothing bounds beforehand."""
        if self.device_second:
            return None
        dearest = max(self.input, self.cached)
        return ((prompt_tokens * dearest + output_tokens * self.output) / MILLION).quantize(SMALLEST)
