"""Keeping the routes on what MLflow's aliases name: read every few seconds by one control process at a time.

The polled registry is the truth and our tables follow it. While MLflow is down they stay as they are: jobs go on being
accepted and served by what is known.
"""

import threading
from typing import Final

from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from penstock.db import Database
from penstock.errors import ServiceUnavailable
from penstock.logs import get_logger
from penstock.registry.mlflow_api import MlflowApi
from penstock.registry.reconcile import reconcile
from penstock.settings import Settings

_ELECTION: Final = 0x70656E73_746F636B  # a number of our own among PostgreSQL's advisory locks
_LONGEST_PAUSE: Final = 30.0

log = get_logger(__name__)


class Synchroniser:
    """Follows the registry. Each control process may run one: of several, one acts at a time."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database, self._poll_seconds = database, settings.model_poll_seconds
        self._mlflow = MlflowApi(settings) if settings.mlflow_tracking_uri is not None else None
        self._failures = 0

    def run(self, stop: threading.Event) -> None:
        """Follow the registry until `stop` is set; without MLFLOW_TRACKING_URI there is nothing to follow."""
        if self._mlflow is None:
            log.warning("registry.not_configured", reason="MLFLOW_TRACKING_URI is not set: no model is synchronised")
            return
        pause = 0.0
        with self._mlflow:
            while not stop.wait(pause):
                pause = self._attempt()

    def tick(self) -> bool:
        """Read the registry and follow it, once. False when another process is at it.

        Raises `ServiceUnavailable` when MLflow does not answer; nothing has changed then.
        """
        if self._mlflow is None:
            raise ServiceUnavailable("MLFLOW_TRACKING_URI is not set, so there is no registry to follow")
        with self._database.transaction() as session:
            if not _elected(session):
                return False
            # Read while elected: what is read later can never be overwritten by what was read earlier.
            models = self._mlflow.models(between=lambda: _keep_alive(session))
            reconcile(session, models)
        return True

    def _attempt(self) -> float:
        """One turn, come what may; answers with the seconds to pause."""
        try:
            self.tick()
        except (ServiceUnavailable, OperationalError) as error:
            self._note_failure(error)
        except Exception:
            log.exception("registry.turn_failed")
            self._failures += 1
        else:
            if self._failures:
                log.info("registry.followed_again", failed_turns=self._failures)
            self._failures = 0
        return float(min(self._poll_seconds * 2 ** min(self._failures, 10), max(_LONGEST_PAUSE, self._poll_seconds)))

    def _note_failure(self, error: Exception) -> None:
        if self._failures == 0:
            reason = error.message if isinstance(error, ServiceUnavailable) else str(error.__cause__ or error)
            log.warning("registry.unreachable", reason=reason)
        self._failures += 1


def _elected(session: Session) -> bool:
    # The lock lasts as long as the transaction, which waits for MLflow; a frozen process loses both after this long.
    session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '15s'"))
    return bool(session.scalar(text("SELECT pg_try_advisory_xact_lock(:election)"), {"election": _ELECTION}))


def _keep_alive(session: Session) -> None:
    session.execute(text("SELECT 1"))
