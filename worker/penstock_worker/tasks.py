"""Celery's side: the doorbell task, and a worker controller without the command line's side effects."""

import logging
from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.app import trace
from celery.worker import WorkController, state
from penstock.broker import CONTROL_QUEUE, SERVE_TASK


def register_serve(app: Celery, answer: Callable[[str], None]) -> None:
    """Add the task that doorbells name. It names no job: whoever answers claims what waits."""

    @app.task(name=SERVE_TASK, ignore_result=True)  # type: ignore[untyped-decorator]  # Celery ships no types
    def serve(deployment_id: str) -> None:
        answer(deployment_id)


class Controller(WorkController):  # type: ignore[misc]  # Celery ships no types
    """A worker of one application in this process: no banner, no signal handlers, no changes to logging.

    `closing` is called when it begins to end, before it waits for the pool's threads.
    """

    def on_before_init(self, *, closing: Callable[[], None], **_options: Any) -> None:
        self._closing = closing
        trace.setup_worker_optimizations(self.app, self.hostname)

    def on_close(self) -> None:
        self._closing()
        super().on_close()


def make_controller(app: Celery, *, worker_id: str, slots: int, closing: Callable[[], None]) -> Controller:
    """A threads pool of `slots`, listening to no queue yet. While every thread is busy it takes no doorbell.

    It sends Celery's heartbeats, and events of its tasks once a monitor asks for them.
    """
    app.conf.worker_disable_prefetch = True
    for name in ("celery.worker.strategy", "celery.app.trace"):  # two lines for each doorbell say nothing
        logging.getLogger(name).setLevel(logging.WARNING)
    return Controller(
        app=app,
        hostname=f"{worker_id}@penstock",
        pool="threads",
        concurrency=slots,
        closing=closing,
        exclude_queues=[CONTROL_QUEUE],
        without_gossip=True,
        without_mingle=True,
    )


def request_shutdown() -> None:
    """Make the controller's loop end at its next turn; its pool then waits for the threads."""
    state.should_stop = 0
