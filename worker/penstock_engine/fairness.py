"""How much of the engine each tenant has had: virtual token counters.

Source: Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024. A tenant is charged for each input and
each output token, divided by its weight, and the one charged least goes first: under backlog, shares converge to the
weights. One that comes back from idling is lifted to the least of those that wait, so idling earns no credit.

Input is charged at admission, when it is known how much of it is cached, and only what must be computed: service is
what the engine does for a tenant, as in Cao et al., "Locality-aware Fair Scheduling in LLM Serving", 2025. Full charges
would make those who share beginnings pay for work that nobody did. So of several that begin alike the first one pays.
"""

from math import floor

INPUT_COST, OUTPUT_COST = 1, 2


class VirtualCounters:
    """`level` orders tenants. Within a `quantum` of cost they count as level, so that other orders have their say."""

    def __init__(self, quantum: int) -> None:
        self._quantum = quantum
        self._charged: dict[str, float] = {}
        self._waiting: dict[str, int] = {}  # tenants with requests that wait, and how many
        self._last = ""  # the tenant that was the last to leave the queue

    def level(self, tenant: str) -> int:
        return floor(self._charged[tenant] / self._quantum)

    def enter(self, tenant: str) -> None:
        """One more request of `tenant` waits."""
        if tenant not in self._waiting:
            self._wake(tenant)
        self._waiting[tenant] = self._waiting.get(tenant, 0) + 1

    def leave(self, tenant: str) -> None:
        """One less waits: it runs, or was dropped."""
        self._waiting[tenant] -= 1
        if not self._waiting[tenant]:
            del self._waiting[tenant]
            self._last = tenant

    def charge(self, tenant: str, cost: float, weight: float) -> None:
        """`tenant`, who runs or ran, has used `cost`; `weight` is its share beside the others'."""
        self._charged[tenant] = self._charged.get(tenant, self._floor) + cost / weight

    @property
    def _floor(self) -> float:
        return min((self._charged[each] for each in self._waiting), default=self._charged.get(self._last, 0.0))

    def _wake(self, tenant: str) -> None:
        """Lift `tenant` to the floor, and forget whom the floor has passed: their next waking lifts them to it."""
        floor_now = self._floor
        self._charged = {
            each: charged for each, charged in self._charged.items() if each in self._waiting or charged >= floor_now
        }
        self._charged.setdefault(tenant, floor_now)
