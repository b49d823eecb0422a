"""What of the control process decides over rollouts, in a process that can be killed."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

from penstock.db import Database
from penstock.metrics import RolloutMetrics
from penstock.registry.mlflow_sync import Synchroniser
from penstock.rollouts.controller import Controller
from penstock.rollouts.models import ControllerLease
from penstock.settings import Settings
from prometheus_client import CollectorRegistry
from sqlalchemy import func, update

# One process imports what all of them need; each is forked from it.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["tests.registry.controlling"])


def decide(settings: Settings) -> None:
    """Lead, judge and follow the registry until somebody ends the process."""
    database, never = Database(settings), threading.Event()
    threading.Thread(target=Synchroniser(database, settings).run, args=(never,), daemon=True).start()
    Controller(database, RolloutMetrics(CollectorRegistry())).run(never)


class Control:
    """The one who decides: started, killed and started again."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings, self._database = settings, database
        self._process: BaseProcess | None = None
        self.killed = 0

    def start(self) -> None:
        """Take the lead. Its holder before is dead, and its lease has run out."""
        with self._database.transaction() as session:
            session.execute(update(ControllerLease).values(expires_at=func.now()))
        self._process = FORKED.Process(target=decide, args=(self._settings,), daemon=True)
        self._process.start()

    def kill(self) -> None:
        """As `kill -9` does: nothing is put in order."""
        assert self._process is not None
        assert self._process.is_alive()
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.join()
        self._process, self.killed = None, self.killed + 1


@contextmanager
def controlled(settings: Settings, database: Database) -> Iterator[Control]:
    """None of them is left when the block ends."""
    control = Control(settings, database)
    control.start()
    yield control
    control.kill()
