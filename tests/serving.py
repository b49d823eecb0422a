"""The application that all tests of a session share, with doors of its own for each."""

from collections.abc import Iterator
from contextlib import contextmanager

from flask import Flask
from penstock.app import make_services
from penstock.db import Database
from penstock.settings import Settings
from redis import Redis

from tests.factories import WordCounter


@contextmanager
def renewed(routed: Flask, settings: Settings, database: Database, redis: Redis) -> Iterator[Flask]:
    """`routed` as if it had just been made: it remembers no key, route or count. Its streams end with it.

    Who adds a route or changes its configuration makes an application of their own.
    """
    services = make_services(settings, WordCounter(), database, redis)
    routed.extensions["penstock"] = services
    yield routed
    services.stop_streams()
    services.live.join()
