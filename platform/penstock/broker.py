"""Redis and Celery: how processes reach each other. Nothing here is the truth; losing all of it loses no job.

Queues: one per deployment for doorbells (`serve_queue`), one for the control processes (`CONTROL_QUEUE`).
"""

from typing import Final

from celery import Celery
from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from penstock.settings import Settings

CONTROL_QUEUE: Final = "penstock.control"
SERVE_TASK: Final = "penstock.serve"
DELIVER_WEBHOOK_TASK: Final = "penstock.webhooks.deliver"
LIVE_CHANNEL_PREFIX: Final = "penstock:live:"


def serve_queue(deployment_id: str) -> str:
    """The queue of one deployment's doorbells; in Redis it is a list of that name."""
    return f"penstock.serve.{deployment_id}"


def make_redis(settings: Settings, *, retries: int = 5, timeout: float = 10.0) -> Redis:
    """A thread-safe Redis client (bytes in, bytes out) that bridges a restart of the server of about two seconds.

    Fewer `retries` and a shorter `timeout` (in seconds, of one answer) are for who can do without.
    """
    return Redis.from_url(
        settings.redis_url.get_secret_value(),
        socket_connect_timeout=min(timeout, 2.0),
        socket_timeout=timeout,
        health_check_interval=15,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), retries=retries),
        retry_on_error=[RedisConnectionError, RedisTimeoutError],
    )


def make_celery(settings: Settings, name: str = "penstock") -> Celery:
    """A Celery application on our Redis.

    Doorbells are acknowledged when they are taken and have no results: the row is the truth. Celery's monitors see what
    they see of any Celery application: events, remote control, the queues' lengths.
    """
    app = Celery(name, broker=settings.redis_url.get_secret_value(), set_as_current=False)
    app.conf.update(
        task_ignore_result=True,
        task_acks_late=False,
        task_default_queue=CONTROL_QUEUE,
        task_serializer="json",
        accept_content=["json"],
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_enable_remote_control=True,
        task_send_sent_event=True,  # monitors know a task by it
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "socket_timeout": 10,
            "socket_connect_timeout": 2,
            "socket_keepalive": True,
            "health_check_interval": 15,
            "visibility_timeout": 3600,
        },
    )
    return app
