"""Which version takes each of the jobs that one transaction takes in: its model's, or that of its arm in a rollout."""

from sqlalchemy.orm import Session

from penstock.errors import ContextLengthExceeded, ValidationFailed
from penstock.jobs.asked import Asked, PromptCounter
from penstock.registry.models import Deployment
from penstock.rollouts.assignment import Who
from penstock.routing.services import Route, RoutingDecision, find
from penstock.usage.budgets import Offer, offer


class Chooser:
    """Chooses for jobs of one tenant. Where a model's jobs go, and for what price, is asked of the database once."""

    def __init__(self, session: Session, tenant_id: str, prompts: PromptCounter) -> None:
        self._session, self._tenant_id, self._prompts = session, tenant_id, prompts
        self._routes: dict[str, Route] = {}
        self._offers: dict[str, Offer] = {}

    def choose(self, asked: Asked, who: Who) -> RoutingDecision:
        """The version that does the job. Raises what says why none can: the champion's word, whichever arm it is on.

        A job that only the champion could do, or that would cost its tenant something else on the other arm, goes to
        the champion and counts on neither: what is compared must be able to come to both.
        """
        route = self._route(asked.request.model)
        asked.refuse_unfit(self._prompts, route.deployment)
        if not all(self._may_take(asked, route.deployment, rival) for rival in route.arms[1:]):
            return route.plain
        return route.decide(who)

    def offer(self, deployment: Deployment) -> Offer:
        """What the version costs the tenant now."""
        if deployment.id not in self._offers:
            self._offers[deployment.id] = offer(self._session, self._tenant_id, deployment)
        return self._offers[deployment.id]

    def _route(self, model: str) -> Route:
        if model not in self._routes:
            self._routes[model] = find(self._session, model)
        return self._routes[model]

    def _may_take(self, asked: Asked, champion: Deployment, rival: Deployment) -> bool:
        try:
            asked.refuse_unfit(self._prompts, rival)
        except (ContextLengthExceeded, ValidationFailed):
            return False
        limited = asked.request.budget is not None and asked.request.budget.amount is not None
        ours, theirs = self.offer(champion), self.offer(rival)
        return not (limited or ours.budgeted or theirs.budgeted) or _same_price(ours, theirs)


def _same_price(one: Offer, other: Offer) -> bool:
    return one.terms is not None and other.terms is not None and one.terms.rates == other.terms.rates
