"""Keeping the routes on what MLflow's aliases name: read every few seconds by one control process at a time.

The polled registry is the truth and our tables follow it. While MLflow is down they stay as they are: jobs go on being
accepted and served by what is known.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Self

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from penstock.db import DATABASE_AWAY, Database
from penstock.errors import ModelNotFound, ServiceUnavailable, ValidationFailed
from penstock.logs import get_logger
from penstock.registry.hints import EVENTS, PATH, Hints
from penstock.registry.mlflow_api import MlflowApi
from penstock.registry.models import RoutingPolicy
from penstock.registry.reconcile import reconcile
from penstock.registry.telling import tell_mlflow
from penstock.settings import Settings

_ELECTION: Final = 0x70656E73_746F636B  # a number of our own among PostgreSQL's advisory locks
_LONGEST_PAUSE: Final = 5.0  # an attempt in vain is cheap, and a model that was just registered should not wait long

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Webhook:
    """What MLflow is to call, and the secret that it signs by."""

    url: str
    secret: str = field(repr=False)

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        reached = settings.registry_webhook_url or settings.public_url
        if settings.registry_webhook_secret is None or reached is None:
            return None
        return cls(reached.rstrip("/") + PATH, settings.registry_webhook_secret.get_secret_value())


class Synchroniser:
    """Follows the registry. Each control process may run one: of several, one acts at a time.

    `failures` counts the turns in a row that failed.
    """

    def __init__(self, database: Database, settings: Settings, hints: Hints | None = None) -> None:
        self._database, self._poll_seconds, self._hints = database, settings.model_poll_seconds, hints
        self._webhook = _Webhook.of(settings)
        self._longest = settings.engine_max_model_len
        self._revert = settings.registry_hand_moves == "revert"
        self._mlflow = MlflowApi(settings) if settings.mlflow_tracking_uri is not None else None
        self.failures = 0

    def run(self, stop: threading.Event) -> None:
        """Follow the registry until `stop` is set; without MLFLOW_TRACKING_URI there is nothing to follow."""
        if self._mlflow is None:
            log.warning("registry.not_configured", reason="MLFLOW_TRACKING_URI is not set: no model is synchronised")
            return
        pause = 0.0
        while not self._rested(pause, stop):
            pause = self.attempt()
        self.close()

    def _rested(self, seconds: float, stop: threading.Event) -> bool:
        """Wait for so long, or until a hint comes; whether to stop."""
        if self._hints is None:
            return stop.wait(seconds)
        self._hints.wait(seconds, stop)
        return stop.is_set()

    def close(self) -> None:
        """Close the connection to MLflow; `run` does it at its end."""
        if self._mlflow is not None:
            self._mlflow.close()

    def tick(self) -> bool:
        """Read the registry and follow it, once. False when another process is at it.

        Raises `ServiceUnavailable` when MLflow does not answer; nothing has changed then.
        """
        if self._mlflow is None:
            raise ServiceUnavailable("MLFLOW_TRACKING_URI is not set, so there is no registry to follow")
        with self.elected() as session:
            if session is None:
                return False
            self._ask_for_hints()
            written = self._write_aliases(session)
            # Read while elected: what is read later can never be overwritten by what was read earlier.
            models = self._mlflow.models(between=lambda: _keep_alive(session))
            reconcile(session, models, longest=self._longest, written=written, revert=self._revert)
        self._tell()
        return True

    def _write_aliases(self, session: Session) -> dict[str, str]:
        """Set the alias `champion` where a route has moved before it; the versions by model.

        A process that dies before it has written that down does it again. What MLflow refuses is tried again, too.
        """
        assert self._mlflow is not None
        moved = select(RoutingPolicy.model_name, RoutingPolicy.alias_to)
        pending = [(name, version) for name, version in session.execute(moved) if version is not None]
        written: dict[str, str] = {}
        for name, version in pending:
            _keep_alive(session)
            try:
                self._mlflow.set_alias(name, "champion", version)
            except (ModelNotFound, ValidationFailed) as error:
                log.warning("registry.alias_refused", model=name, version=version, reason=error.message)
            else:
                written[name] = version
                log.info("registry.alias_set", model=name, version=version)
        return written

    def _tell(self) -> None:
        """Write rollouts' decisions to the versions in MLflow that they are about."""
        assert self._mlflow is not None
        with self.elected() as session:
            if session is not None:
                tell_mlflow(session, self._mlflow)

    def _ask_for_hints(self) -> None:
        """Have MLflow tell us of changes, once in this process's life; where it does not, we read by the clock."""
        webhook, self._webhook = self._webhook, None
        if webhook is None or self._mlflow is None:
            return
        try:
            self._mlflow.set_webhook(webhook.url, secret=webhook.secret, events=EVENTS)
        except (ServiceUnavailable, ValidationFailed, ModelNotFound) as error:
            log.warning("registry.no_webhook", url=webhook.url, reason=error.message)

    @contextmanager
    def elected(self) -> Iterator[Session | None]:
        """The transaction of the one that may act, which it is until it ends; None when another is at it."""
        with self._database.transaction() as session:
            # A process that freezes while MLflow is asked loses transaction and election after this long.
            session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '15s'"))
            won = session.scalar(text("SELECT pg_try_advisory_xact_lock(:election)"), {"election": _ELECTION})
            yield session if won else None

    def attempt(self) -> float:
        """One turn, come what may; answers with the seconds to pause, which grow while turns fail."""
        try:
            self.tick()
        except (ServiceUnavailable, *DATABASE_AWAY) as error:
            self._note_failure(error)
        except Exception:
            log.exception("registry.turn_failed")
            self.failures += 1
        else:
            if self.failures:
                log.info("registry.followed_again", failed_turns=self.failures)
            self.failures = 0
        return float(min(self._poll_seconds * 2 ** min(self.failures, 10), max(_LONGEST_PAUSE, self._poll_seconds)))

    def _note_failure(self, error: Exception) -> None:
        if self.failures == 0:
            reason = error.message if isinstance(error, ServiceUnavailable) else str(error.__cause__ or error)
            log.warning("registry.unreachable", reason=reason)
        self.failures += 1


def _keep_alive(session: Session) -> None:
    session.execute(text("SELECT 1"))
