"""Which deployments' queues the Celery consumer listens to: those that are ready here, and no other."""

import threading
from collections.abc import Iterable
from typing import Any

from celery import Celery, bootsteps
from penstock.broker import serve_queue


class Doorbells:
    """Adds queues to the running consumer and cancels them; also after every reconnection."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._wanted: frozenset[str] = frozenset()
        self._consumer: Any = None
        self._lock = threading.Lock()
        app.steps["consumer"].add(self._step())

    def listen(self, deployment_ids: Iterable[str]) -> None:
        """Listen to these deployments' queues and to no other. Safe from any thread; the consumer's own does it."""
        with self._lock:
            self._wanted = frozenset(map(serve_queue, deployment_ids))
            consumer = self._consumer
        if consumer is not None:
            consumer.call_soon(self._reconcile)

    def wake(self) -> None:
        """Make the consumer's loop look around now, as when the process is to stop."""
        consumer = self._consumer
        if consumer is not None:
            consumer.call_soon(_nothing)

    def _reconcile(self) -> None:
        """In the consumer's thread."""
        listening = set(self._app.amqp.queues.consume_from)
        queues = self._app.amqp.queues
        for queue in sorted(self._wanted - listening):
            queues[queue].no_ack = True  # a lost doorbell costs a second: none is kept aside until it is acknowledged
            self._consumer.add_task_queue(queue)
        for queue in sorted(listening - self._wanted):
            self._consumer.cancel_task_queue(queue)

    def _attach(self, consumer: Any) -> None:
        with self._lock:
            self._consumer = consumer
        self._reconcile()

    def _step(self) -> type:
        attach = self._attach

        class Listen(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery ships no types
            """Tells us of the consumer whenever it has connected."""

            requires = ("celery.worker.consumer.tasks:Tasks",)

            def start(self, parent: Any) -> None:
                attach(parent)

        return Listen


def _nothing() -> None:
    """A callback whose only effect is that the loop runs."""
