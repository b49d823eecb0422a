"""What a control process does for batches, in a thread of the tests."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from penstock.batches.tending import BatchTender
from penstock.batches.workshop import Workshop

from tests.platform.openai_api.conftest import House


@contextmanager
def tended(house: House) -> Iterator[None]:
    """Batches of the house go on while the block does, without a word: standard output is the test's."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    world, stop = house.world, threading.Event()
    tender = BatchTender(Workshop.open(world.settings, world.database, world.redis))
    thread = threading.Thread(target=tender.run, args=(stop,), name="tender")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        structlog.reset_defaults()
