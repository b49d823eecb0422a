"""A tenant's webhook endpoints: made and changed by its people, disabled also by what their receivers answer.

Takes a session and never commits. Whoever locks an endpoint and its deliveries locks the endpoint first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final

import httpx
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from penstock.auth.audit import Action, Actor, ActorKind, record
from penstock.auth.models import Tenant
from penstock.auth.services import Scope
from penstock.errors import Forbidden, NotFound, TooManyWebhookEndpoints
from penstock.events.services import publish
from penstock.ids import new_id
from penstock.webhooks.documents import endpoint_document
from penstock.webhooks.models import WebhookDelivery, WebhookEndpoint
from penstock.webhooks.queueing import Owed, queue_delivery, tell_endpoints
from penstock.webhooks.retries import GONE, MOST_ATTEMPTS, Answer
from penstock.webhooks.signing import new_secret

MOST_ENDPOINTS: Final = 20
"""Each multiplies what every job of the tenant causes."""

SYSTEM: Final = Actor(ActorKind.SYSTEM, "webhooks", "Penstock", None, ())
BY_HAND: Final = "disabled by hand"
OPERATORS_EVENTS: Final = ("rollout.", "model.")
"""Events of the installation, which only an operator can have sent to an address."""


class EndpointEvent(StrEnum):
    """The events of an endpoint itself."""

    DISABLED = "webhook_endpoint.disabled"
    TEST = "webhook_endpoint.test"


@dataclass(frozen=True, slots=True)
class EndpointChange:
    """What becomes different; None stays."""

    url: str | None = None
    description: str | None = None
    events: list[str] | None = None
    disabled: bool | None = None

    @property
    def columns(self) -> dict[str, Any]:
        given = {"url": self.url, "description": self.description, "events": self.events}
        return {name: value for name, value in given.items() if value is not None}


def list_endpoints(session: Session, tenant_id: str) -> Sequence[WebhookEndpoint]:
    """The tenant's endpoints, newest first."""
    return session.scalars(
        select(WebhookEndpoint).where(WebhookEndpoint.tenant_id == tenant_id).order_by(WebhookEndpoint.id.desc())
    ).all()


def get_endpoint(session: Session, tenant_id: str, endpoint_id: str, *, lock: bool = False) -> WebhookEndpoint:
    """The tenant's endpoint. Raises `NotFound`."""
    query = select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.tenant_id == tenant_id)
    endpoint = session.scalars(query.with_for_update(key_share=True) if lock else query).one_or_none()
    if endpoint is None:
        raise NotFound(f"there is no webhook endpoint {endpoint_id}")
    return endpoint


class Endpoints:
    """What `actor` does with a tenant's endpoints, each act with its entry in the record."""

    def __init__(self, session: Session, actor: Actor, tenant_id: str) -> None:
        self._session = session
        self._actor = actor
        self._tenant_id = tenant_id

    def create(self, *, url: str, description: str, events: Sequence[str]) -> WebhookEndpoint:
        """A new endpoint with a secret of its own. Raises `TooManyWebhookEndpoints` and `Forbidden`."""
        self._refuse_operators_events(events)
        # One at a time of each tenant, so that two together do not pass the limit.
        self._session.execute(select(Tenant.id).where(Tenant.id == self._tenant_id).with_for_update(key_share=True))
        if len(list_endpoints(self._session, self._tenant_id)) >= MOST_ENDPOINTS:
            raise TooManyWebhookEndpoints(f"a tenant has at most {MOST_ENDPOINTS} webhook endpoints; delete one first")
        endpoint = WebhookEndpoint(
            id=new_id("whe"),
            tenant_id=self._tenant_id,
            url=url,
            description=description,
            events=list(events),
            secret=new_secret(),
        )
        self._session.add(endpoint)
        self._session.flush()
        self._session.refresh(endpoint)
        self._note(Action.WEBHOOK_CREATED, endpoint, {"host": httpx.URL(url).host, "events": endpoint.events})
        return endpoint

    def change(self, endpoint_id: str, change: EndpointChange) -> WebhookEndpoint:
        """Change it, disable it, or enable it again, which forgives its failures. Raises `Forbidden`."""
        endpoint = self._locked(endpoint_id)
        self._refuse_operators_events([*(change.events or ()), *(endpoint.events if change.url else ())])
        for name, value in change.columns.items():
            setattr(endpoint, name, value)
        if change.columns:
            self._note(
                Action.WEBHOOK_CHANGED,
                endpoint,
                {"fields": sorted(change.columns), "host": httpx.URL(endpoint.url).host, "events": endpoint.events},
            )
        if change.disabled is True and endpoint.disabled_at is None:
            disable(self._session, endpoint, BY_HAND, self._actor)
        elif change.disabled is False and endpoint.disabled_at is not None:
            endpoint.disabled_at, endpoint.disabled_reason = None, None
            endpoint.failures, endpoint.failing_since = 0, None
            self._note(Action.WEBHOOK_ENABLED, endpoint, {})
        self._session.flush()
        return endpoint

    def rotate_secret(self, endpoint_id: str, grace: timedelta) -> WebhookEndpoint:
        """A fresh secret; for `grace`, attempts are signed with the one before as well."""
        endpoint = self._locked(endpoint_id)
        until = self._session.scalar(select(func.now() + grace)) if grace else None
        endpoint.previous_secret = endpoint.secret if until is not None else None
        endpoint.previous_secret_until = until
        endpoint.secret = new_secret()
        self._session.flush()
        self._note(Action.WEBHOOK_SECRET_ROTATED, endpoint, {"grace_seconds": int(grace.total_seconds())})
        return endpoint

    def remove(self, endpoint_id: str) -> None:
        """Delete it with its deliveries."""
        endpoint = self._locked(endpoint_id)
        self._note(Action.WEBHOOK_DELETED, endpoint, {"host": httpx.URL(endpoint.url).host})
        self._session.delete(endpoint)
        self._session.flush()

    def test(self, endpoint_id: str) -> WebhookDelivery:
        """Send it a test event, also while it is disabled: one attempt, which leaves its standing alone."""
        endpoint = self._locked(endpoint_id)
        owed = Owed(self._tenant_id, EndpointEvent.TEST, endpoint_document(endpoint))
        delivery_id = queue_delivery(self._session, owed, endpoint.url, endpoint_id=endpoint.id)
        return self._session.get_one(WebhookDelivery, delivery_id)

    def _refuse_operators_events(self, events: Sequence[str]) -> None:
        theirs = [event for event in events if event.startswith(OPERATORS_EVENTS)]
        if theirs and not self._actor.may(Scope.OPERATOR):
            raise Forbidden(f"{theirs[0]} is for operators: this needs the scope operator", field="events")

    def _locked(self, endpoint_id: str) -> WebhookEndpoint:
        return get_endpoint(self._session, self._tenant_id, endpoint_id, lock=True)

    def _note(self, action: Action, endpoint: WebhookEndpoint, details: dict[str, Any]) -> None:
        record(self._session, self._actor, action, tenant_id=self._tenant_id, target=endpoint.id, details=details)


def note_answer(session: Session, endpoint_id: str, answer: Answer, *, disable_after: timedelta) -> None:
    """What an attempt's answer means for its endpoint: a success ends its failing, a long failing disables it.

    It is disabled after failing without a success for so long and through a whole schedule's attempts, and at once when
    its owner says that it is gone.
    """
    this = update(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id)
    if answer.delivered:
        session.execute(this.where(WebhookEndpoint.failures > 0).values(failures=0, failing_since=None))
        return
    failed = this.where(WebhookEndpoint.disabled_at.is_(None)).values(
        failures=WebhookEndpoint.failures + 1,
        failing_since=func.coalesce(WebhookEndpoint.failing_since, func.clock_timestamp()),
    )
    found = session.execute(
        failed.returning(WebhookEndpoint, func.clock_timestamp() - WebhookEndpoint.failing_since),
        execution_options={"populate_existing": True},
    ).one_or_none()
    if found is None:
        return
    endpoint, failing_for = found
    if answer.status == GONE:
        disable(session, endpoint, "its receiver answered 410: gone", SYSTEM)
    elif endpoint.failures >= MOST_ATTEMPTS and failing_for >= disable_after:
        days = failing_for / timedelta(days=1)
        disable(session, endpoint, f"{endpoint.failures} attempts failed in {days:.1f} days, none succeeded", SYSTEM)


def disable(session: Session, endpoint: WebhookEndpoint, reason: str, actor: Actor) -> None:
    """Send it nothing more, and say so: in the record, in the feed, and to the tenant's other endpoints.

    What waited for it has failed, and can be replayed once it is enabled again.
    """
    endpoint.disabled_at, endpoint.disabled_reason = session.scalar(select(func.now())), reason
    session.flush()
    session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.endpoint_id == endpoint.id, WebhookDelivery.status == "waiting")
        .values(status="failed", next_attempt_at=None)
    )
    document = endpoint_document(endpoint)
    details = {"reason": reason}
    record(session, actor, Action.WEBHOOK_DISABLED, tenant_id=endpoint.tenant_id, target=endpoint.id, details=details)
    publish(session, tenant_id=endpoint.tenant_id, event_type=EndpointEvent.DISABLED, data=document)
    tell_endpoints(session, Owed(endpoint.tenant_id, EndpointEvent.DISABLED, document))
